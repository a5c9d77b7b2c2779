"""The pictures of an answer by topic, re-exported by `plots`."""
