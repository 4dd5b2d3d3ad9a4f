"""Recursive distillation: rounds in which a model writes its own training data."""
