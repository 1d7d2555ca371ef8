"""Data that comes with the package: a small fine-tuned BERT and labelled review sentences."""
