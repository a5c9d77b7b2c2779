"""Fast and safe searches, for any number of rows."""
