"""Compiled derivatives of the loss."""
