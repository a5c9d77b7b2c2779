"""A trained network as a pure function of its parameters and one input window."""
