"""Prefix sharing: a model on a tree of the sequences of a batch."""
