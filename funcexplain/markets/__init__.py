"""Real prices, their features, and small networks trained on them."""
