"""The commands run, report and check: from a config file and a user's own network to files in a folder."""
