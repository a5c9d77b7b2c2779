"""Real prices, the features made of them, and small networks trained on them."""
