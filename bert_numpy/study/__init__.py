"""Many models, recipes and tasks at once."""
