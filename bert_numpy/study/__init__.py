"""Studies of many models, recipes and tasks."""
