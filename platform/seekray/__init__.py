"""seekray: train, tune, track, register and serve the DeepSeek model families on Ray."""

__version__ = "0.1.0"
