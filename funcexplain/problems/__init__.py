"""A question about a network: the search space, the objective, and the entries that stay fixed."""
