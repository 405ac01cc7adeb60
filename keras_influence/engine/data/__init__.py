"""A user's data as batches in a stable order."""
