"""Training data where there is none: questions and SQL made from a database or by a model."""
