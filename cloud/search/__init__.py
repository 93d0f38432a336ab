"""Search over what was sent: an opt-in store of answered frames in one SQLite file, and exact search in memory."""
