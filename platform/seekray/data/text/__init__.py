"""Texts: documents to tokens, streams and passages; tokenizers, batches, and what a text model keeps of its data."""
