"""A file a command: a function to import, and its arguments."""
