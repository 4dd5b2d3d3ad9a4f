"""Rows of datasets on their way to tokens: their layouts, and what is refused or left out."""
