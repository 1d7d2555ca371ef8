"""The texts, labels and scores with which models are evaluated."""
