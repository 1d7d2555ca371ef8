"""Text, labels and scores: what a model is evaluated on."""
