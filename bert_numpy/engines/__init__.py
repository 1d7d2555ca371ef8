"""What an operation of a forward pass means: engines, and the functions that they use."""
