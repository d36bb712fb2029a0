"""Tables: rows to features and targets, fitted on the training rows and kept in the bundle; their batches."""
