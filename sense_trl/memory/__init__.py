"""What a training takes of a card's memory, before it runs."""
