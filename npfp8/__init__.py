"""npfp8: bit-exact FP8 (and INT8) in NumPy: codes, scales, tensors, exact products."""

from npfp8.codec import decode, encode, encode_bfloat16
from npfp8.formats import E4M3FN, E5M2, INT8, UINT8, FloatFormat, Format, IntFormat

__all__ = ["E4M3FN","E5M2","INT8","UINT8","FloatFormat","Format","IntFormat","decode","encode","encode_bfloat16"]
