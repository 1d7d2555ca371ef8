"""The meaning of a forward pass's operations: engines, and the functions that they use."""
