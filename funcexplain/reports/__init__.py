"""What shows an answer."""
