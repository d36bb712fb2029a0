"""Data: what all families share here, and a room each for sources, samples, tables, sequences, texts, what is generated."""
