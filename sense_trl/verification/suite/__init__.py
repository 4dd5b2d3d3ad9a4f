"""Verdicts on neighbours of a database, made so that they tell gold from its mutants."""
