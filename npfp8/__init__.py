"""npfp8: bit-exact FP8 and INT8 in NumPy: codes, scales, quantized tensors, exact products.

Examples
--------
>>> import numpy as np, npfp8
>>> npfp8.decode(npfp8.encode([0.1, 3.14159, 1000.0], npfp8.E4M3FN), npfp8.E4M3FN)
array([1.015625e-01, 3.250000e+00, 4.480000e+02], dtype=float32)
"""

from npfp8.blocks import (
    BLOCK_FORMATS,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    POWER_RULES,
    RATIO_RULES,
    BlockFormat,
)
from npfp8.codec import ROUNDINGS, decode, decode_bfloat16, encode, encode_bfloat16
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E3M4FN,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FIXED8,
    INT4,
    INT8,
    P3109_K8P3,
    P3109_K8P4,
    UE4M3,
    UINT4,
    UINT8,
    FloatFormat,
    Format,
    IntFormat,
    describe,
    values,
)
from npfp8.products import (
    ACCUMULATIONS,
    ACCUMULATORS,
    Accumulator,
    exact_k_limit,
    matmul,
    matmul_16bit,
    matmul_float32,
)
from npfp8.products.lookup import LookupWeights, lookup_matmul, lookup_weights
from npfp8.scaling import absmax_scale
from npfp8.tensor import QuantizedTensor, quantize, quantize_bfloat16

__version__ = "0.1.0"

__all__ = [
    "ACCUMULATIONS",
    "ACCUMULATORS",
    "BLOCK_FORMATS",
    "E2M1",
    "E2M3",
    "E3M2",
    "E3M4",
    "E3M4FN",
    "E4M3",
    "E4M3B11FNUZ",
    "E4M3FN",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0FNU",
    "FIXED8",
    "INT4",
    "INT8",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NVFP4",
    "P3109_K8P3",
    "P3109_K8P4",
    "POWER_RULES",
    "RATIO_RULES",
    "ROUNDINGS",
    "UE4M3",
    "UINT4",
    "UINT8",
    "Accumulator",
    "BlockFormat",
    "FloatFormat",
    "Format",
    "IntFormat",
    "LookupWeights",
    "QuantizedTensor",
    "absmax_scale",
    "decode",
    "decode_bfloat16",
    "describe",
    "encode",
    "encode_bfloat16",
    "exact_k_limit",
    "lookup_matmul",
    "lookup_weights",
    "matmul",
    "matmul_16bit",
    "matmul_float32",
    "quantize",
    "quantize_bfloat16",
    "values",
]
