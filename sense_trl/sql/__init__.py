"""Reading and changing SQL text, by sqlglot's trees."""
