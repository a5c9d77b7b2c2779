"""A question about a network: what is searched, what is minimized, what stays as it is."""
