"""Routes: each file has those of one dialect, or of one thing that the server holds."""
