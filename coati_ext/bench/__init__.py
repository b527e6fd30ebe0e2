"""What saving tokens is worth on a coati, a model and data of the user's own."""
