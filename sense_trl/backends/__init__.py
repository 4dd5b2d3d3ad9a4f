"""Where the parts of a large job run: one after the other here, or on a Ray cluster."""
