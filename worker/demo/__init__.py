"""`unlatent demo`: everything on this machine, from an upload to its verdict."""
