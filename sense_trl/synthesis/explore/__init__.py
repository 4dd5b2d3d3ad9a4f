"""Questions and SQL from a database that nobody has asked anything yet (DB-Explore)."""
