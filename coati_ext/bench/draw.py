"""The stages as a picture."""
