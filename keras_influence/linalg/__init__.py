"""Symmetric linear systems: operators, factors, solvers. NumPy and SciPy alone."""
