"""What keeps a synthesised example out of the training data."""
