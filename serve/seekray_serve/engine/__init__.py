"""Continuous batching of texts: knows neither Ray nor HTTP."""
