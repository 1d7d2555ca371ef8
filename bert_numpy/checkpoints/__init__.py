"""A model's files, read and written."""
