"""What makes the search fast and safe, for any number of rows."""
