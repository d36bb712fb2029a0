"""Data: sources, features, splits and batches."""
