"""Keep JAX out of the process that runs the tests: it starts threads, and others start processes."""

collect_ignore = ["in_jax.py"]
