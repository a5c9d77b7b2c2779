"""The search for an answer: optimizers, one step, one loop."""
