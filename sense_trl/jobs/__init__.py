"""Whole jobs, each one command: quickstart, recursive distillation, the installation check."""
