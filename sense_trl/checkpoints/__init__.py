"""Models on disk: what a training starts from, and what is made of its result."""
