"""How does a model learn? A tape around the forward pass, losses, AdamW, and the loop over data."""
