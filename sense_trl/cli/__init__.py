"""The command `sense-trl`: parse, call, print."""
