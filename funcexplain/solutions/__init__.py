"""The answer to a question, its tables and its files."""
