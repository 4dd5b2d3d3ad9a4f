"""Sampling token ids from a model with shared prefixes. It knows no SQL, and no text."""
