"""The Ray Serve side of seekray: models as HTTP endpoints."""
