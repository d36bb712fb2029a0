"""Sequences: ragged columns and their batches, long tables framed to rows, sounds, and what a forecast must beat."""
