"""Models that are asked rather than trained, and what they said, on disk."""
