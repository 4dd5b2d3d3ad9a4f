"""Memory that a training takes, told before it runs."""
