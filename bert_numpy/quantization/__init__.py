"""From a model and statistics of its activations to a quantized model."""
