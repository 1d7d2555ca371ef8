"""A quantized model in other programs' formats."""
