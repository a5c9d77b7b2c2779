"""The commands run, check and report: from a config and a user's own network to files in a folder."""
