"""The commands: from a config and a user's own network to files in a folder.

A config is read (`config`, `reading`) and loaded (`inputs`: the network, prices in windows, and the
question as a problem); `run`, `check`, `why` and `whatif` answer it, and `outputs`, `tables` and
`folder` write the answer. For bad input, every function here raises a ValueError, TypeError, OSError or
ImportError, whose message names the entry and the remedy.
"""
