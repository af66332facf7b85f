"""Tensors only: which units of which sublayer to keep under a budget. Knows no model."""
