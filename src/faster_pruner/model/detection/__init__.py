"""Finds the family of a model that no table row describes, and proves it before anything relies on it."""
