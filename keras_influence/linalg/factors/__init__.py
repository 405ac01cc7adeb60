"""What can be computed once for a matrix, and its inverse."""
