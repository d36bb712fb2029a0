"""Rows in, predictions out: parsing, a batch through a predictor, and the Open Inference Protocol."""
