"""An encoder layer of BERT in PyTorch with FP8 products, on a kit's weights, scales and inputs.

    python layer.py kit layer.safetensors

It reads the kit's tensors and writes each step of the first layer under the kit's names.
With --tanh it has a fault: GELU is the approximation by tanh.
"""

import sys

import torch
from safetensors.torch import load_file, save_file

kit = load_file(f"{sys.argv[1]}/tensors.safetensors")
CASE, SITE = "model/0", "encoder.layer.0"
found = {}


def keep(name, x):
    """Keep a step's result under the kit's name for it."""
    found[f"{CASE}/{SITE}.{name}"] = x.contiguous()
    return x


def bfloat16(x):
    """Round to bfloat16, and go on in float32."""
    return x.to(torch.bfloat16).float()


def encode(name, x, role="a"):
    """Quantize an operand by the kit's scale: the codes, and the scale."""
    scale = kit[f"scales/{SITE}.{name}/{role}.scale"]
    codes = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return keep(f"{name}/{role}", codes), scale


def product(name, a, b, scale, bias=0.0):
    """Multiply codes: the sum in float64, rounded once; the scale, the bias, bfloat16."""
    total = keep(f"{name}/sum", (a.double() @ b.double()).float())
    total = keep(f"{name}/product", total * scale + bias)
    return keep(f"{name}/result", bfloat16(total))


def linear(name, x):
    """Apply a linear layer with the kit's codes of its weight."""
    codes, scale = encode(name, x)
    weight = f"weights/{SITE}.{name}"
    scale = scale * kit[f"{weight}.weight.scale"]
    return product(name, codes, kit[f"{weight}.weight"].T, scale, kit[f"{weight}.bias"])


def attention(name, x, y):
    """Multiply two activations, head by head."""
    (b, b_scale), (a, a_scale) = encode(name, y, "b"), encode(name, x)
    return product(name, a, b, a_scale * b_scale)


def add_and_norm(name, norm, x, residual):
    """Add the residual and normalise."""
    total = keep(f"{name}/add", bfloat16(x + residual)).double()
    weight, bias = (kit[f"weights/{SITE}.{norm}.{part}"].double() for part in ("weight", "bias"))
    normed = torch.nn.functional.layer_norm(total, weight.shape, weight, bias, 1e-12)
    return keep(f"{name}/layer_norm", bfloat16(normed.float()))


def heads(x):
    """Turn (tokens, 128) into (1, 2 heads, tokens, 64)."""
    return x.view(1, -1, 2, 64).transpose(1, 2)


def gelu(x):
    """Compute GELU in float64: in float32 its tail cancels."""
    how = "tanh" if "--tanh" in sys.argv else "none"
    return torch.nn.functional.gelu(x.double(), approximate=how).float()


x = kit[f"{CASE}/embeddings/layer_norm"].float()
query, key, value = (linear(f"attention.self.{part}", x) for part in ("query", "key", "value"))
scores = attention("attention.scores", heads(query), heads(key).mT)
scores = keep("attention.scores/multiply", bfloat16(scores / 8))  # 1/sqrt(64)
weights = torch.softmax(scores.double(), -1).float()
weights = keep("attention.scores/softmax", bfloat16(weights))
context = attention("attention.context", weights, heads(value))
context = context.transpose(1, 2).reshape(x.shape)
projected = linear("attention.output.dense", context)
x = add_and_norm("attention.output.dense", "attention.output.LayerNorm", projected, x)
inner = keep("intermediate.dense/gelu", bfloat16(gelu(linear("intermediate.dense", x))))
x = add_and_norm("output.dense", "output.LayerNorm", linear("output.dense", inner), x)
save_file(found, sys.argv[2])
print(f"{len(found)} tensors")
