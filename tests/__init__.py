"""Laws over catalogues; see docs/contributing.md."""
