"""Databases with questions that a strong model invents (SENSE's strong data)."""
