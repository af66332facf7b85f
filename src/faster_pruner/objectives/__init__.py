"""Objectives: what a model is judged by, as values."""
