"""An encoder as somebody else writes it, in plain NumPy, so that tests can plant faults in it.

It reads a kit's inputs and weights, and uses none of this project's arithmetic. Every step is a
function that a fault replaces. Right steps compute in float64 and round once.
"""

import math

import numpy as np

BF16 = np.uint32(0xFFFF0000)


def bfloat16(x):
    """Round to bfloat16, to nearest even, by adding to the bits of float32."""
    wide = np.asarray(x, np.float64)
    narrow = wide.astype(np.float32)
    # To odd, so that rounding twice is rounding once.
    bits = np.atleast_1d(narrow).view(np.uint32).copy()
    back = np.atleast_1d(narrow).astype(np.float64)
    off = (back != np.atleast_1d(wide)) & np.isfinite(back) & (bits % 2 == 0)
    away = np.abs(np.atleast_1d(wide)) > np.abs(back)
    bits = np.where(off, np.where(away, bits + 1, bits - 1), bits).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & BF16
    out = np.where(np.isnan(np.atleast_1d(narrow)), np.float32(np.nan), rounded.view(np.float32))
    return out.reshape(np.shape(x)).astype(np.float32)


_CODES = np.arange(256)
_EXPONENT, _FRACTION = _CODES >> 3 & 15, _CODES & 7
_VALUES = np.where(
    _EXPONENT > 0, (8 + _FRACTION) * 2.0 ** (_EXPONENT - 10.0), _FRACTION * 2.0**-9
) * np.where(_CODES & 0x80, -1, 1)
_VALUES[[0x7F, 0xFF]] = np.nan


def e4m3(codes):
    return _VALUES[codes]


def to_e4m3(x):
    """Encode with saturation, to nearest even, by the rounding of halves of a step."""
    x = np.asarray(x, np.float64)
    magnitude = np.minimum(np.abs(x), 448)
    exponent = np.maximum(np.floor(np.log2(np.maximum(magnitude, 2.0**-20))), -6)
    exponent = np.where(2.0 ** (exponent + 1) <= magnitude, exponent + 1, exponent)
    step = 2.0 ** (exponent - 3)
    value = np.rint(magnitude / step) * step
    codes = np.searchsorted(_VALUES[:0x7F], np.nan_to_num(value))
    codes = np.where(np.isnan(x), 0x7F, codes)
    return (codes | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def exact_sum(a, b):
    """Every product and sum fits into 53 bits."""
    return (e4m3(a) @ e4m3(b)).astype(np.float32) + np.float32(0)


def exact_product(a, b):
    """Each sum of float32 numbers' products, rounded once."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.float32([[math.fsum(row * column) for column in b.T] for row in a])


def scaled(total, a_scale, b_scale, bias=None):
    total = total * np.float32(a_scale * b_scale)
    return total if bias is None else total + bias


def quantize(x, scale):
    return to_e4m3(x / scale)


def softmax(x):
    x = x.astype(np.float64)
    weights = np.exp(x - x.max(-1, keepdims=True))
    return bfloat16(weights / weights.sum(-1, keepdims=True))


def layer_norm(x, weight, bias, eps):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return bfloat16(centred / np.sqrt(variance + eps) * weight + bias)


def gelu(x):
    erfc = np.frompyfunc(math.erfc, 1, 1)
    x = x.astype(np.float64)
    return bfloat16(0.5 * x * erfc(-x / math.sqrt(2)).astype(np.float64))


def split(x, heads):
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)[None]


def merge(x):
    return x[0].transpose(1, 0, 2).reshape(x.shape[2], -1)


STEPS = {
    "quantize": quantize,
    "quantize_query": lambda x, scale, own: own(x, scale),
    "quantize_key": lambda x, scale, own: own(x, scale),
    "sum": exact_sum,
    "scaled": scaled,
    "result": bfloat16,
    "scores": lambda x: bfloat16(x * np.float32(0.125)),
    "softmax": softmax,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "add": lambda x, y: bfloat16(x + y),
    "split": split,
    "split_key": lambda x, heads, own: own(x, heads),
    "merge": merge,
    "weight": lambda codes: codes.T,
    "tanh": lambda x: bfloat16(np.tanh(x.astype(np.float64))),
}


def encoder(kit, case="model/0", **faults):
    """Run the kit's model on one of its inputs; every step's tensor by its name."""
    do = STEPS | faults
    found = {}

    def given(name):
        return np.array(kit.arrays[name])

    def keep(name, x):
        found[f"{case}/{name}"] = np.asarray(x)
        return found[f"{case}/{name}"]

    def product(site, a, b, a_scale, b_scale, bias=None):
        total = keep(f"{site}/sum", do["sum"](a, b))
        args = (total, a_scale, b_scale) if bias is None else (total, a_scale, b_scale, bias)
        return keep(f"{site}/result", do["result"](keep(f"{site}/product", do["scaled"](*args))))

    def linear(site, x):
        scale = given(f"scales/{site}/a.scale")
        a = keep(f"{site}/a", do["quantize"](x, scale))
        b = do["weight"](given(f"weights/{site}.weight"))
        b_scale = given(f"weights/{site}.weight.scale")
        return product(site, a, b, scale, b_scale, given(f"weights/{site}.bias"))

    def norm(site, name, x, eps=1e-12):
        parameters = (given(f"weights/{name}.{part}") for part in ("weight", "bias"))
        return keep(f"{site}/layer_norm", do["layer_norm"](x, *parameters, eps))

    x = keep(
        "embeddings/add",
        do["add"](given(f"{case}/embeddings/add.x"), given(f"{case}/embeddings/add.y")),
    )
    x = norm("embeddings", "embeddings.LayerNorm", x)
    for layer in range(2):
        place = f"encoder.layer.{layer}"
        at = f"{place}.attention"
        q, k, v = (linear(f"{at}.self.{what}", x) for what in ("query", "key", "value"))
        a_scale, b_scale = (given(f"scales/{at}.scores/{o}.scale") for o in "ab")
        q = keep(f"{at}.scores/a", do["quantize_query"](do["split"](q, 2), a_scale, do["quantize"]))
        k = do["split_key"](k, 2, do["split"]).swapaxes(-1, -2)
        k = keep(f"{at}.scores/b", do["quantize_key"](k, b_scale, do["quantize"]))
        scores = product(f"{at}.scores", q, k, a_scale, b_scale)
        scores = keep(f"{at}.scores/multiply", do["scores"](scores))
        weights = keep(f"{at}.scores/softmax", do["softmax"](scores))
        a_scale, b_scale = (given(f"scales/{at}.context/{o}.scale") for o in "ab")
        a = keep(f"{at}.context/a", do["quantize"](weights, a_scale))
        b = keep(f"{at}.context/b", do["quantize"](do["split"](v, 2), b_scale))
        context = do["merge"](product(f"{at}.context", a, b, a_scale, b_scale))
        dense = linear(f"{at}.output.dense", context)
        total = keep(f"{at}.output.dense/add", do["add"](dense, x))
        x = norm(f"{at}.output.dense", f"{at}.output.LayerNorm", total)
        inner = linear(f"{place}.intermediate.dense", x)
        inner = keep(f"{place}.intermediate.dense/gelu", do["gelu"](inner))
        dense = linear(f"{place}.output.dense", inner)
        total = keep(f"{place}.output.dense/add", do["add"](dense, x))
        x = norm(f"{place}.output.dense", f"{place}.output.LayerNorm", total)
    weight, bias = (given(f"weights/pooler.dense.{part}") for part in ("weight", "bias"))
    first = keep("pooler.dense/product", exact_product(x[:1], weight.T) + bias)
    pooled = keep("pooler.dense/tanh", do["tanh"](keep("pooler.dense/tanh.x", bfloat16(first))))
    keep("pooler_output", pooled)
    weight, bias = (given(f"weights/classifier.{part}") for part in ("weight", "bias"))
    logits = exact_product(pooled, weight.T) + bias
    keep("logits", keep("classifier/product", logits))
    return found
