"""Filters that keep synthesised examples out of the training data."""
