"""The answer to a question, and how it is shown."""
