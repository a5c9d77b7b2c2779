"""Reports and pictures of an answer."""
