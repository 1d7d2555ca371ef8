"""Exporting a quantized model to the formats of other programs."""
