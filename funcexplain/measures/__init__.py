"""What judges an answer."""
