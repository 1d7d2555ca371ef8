"""Reading and writing a model's files."""
