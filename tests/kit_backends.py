"""Small backends on other libraries, as examples of candidates: tensors by the kit's names."""

import numpy as np

from npfp8.formats import FLOAT_FORMATS
from npfp8.interop import ML_DTYPES_NAMES


def ml_dtypes_backend(ml_dtypes, kit):
    """Encode and decode by ml_dtypes, add exact products up in float64."""
    found = {}
    for case in kit.cases("decode"):
        if FLOAT_FORMATS[case.attributes["fmt"]] in ML_DTYPES_NAMES:
            found[case.name] = case.inputs["codes"].view(_ml(ml_dtypes, case)).astype(np.float32)
    for case in kit.cases("encode"):
        how = case.attributes
        fmt = FLOAT_FORMATS[how["fmt"]]
        nearest = how.get("rounding", "nearest") == "nearest"
        if nearest and not how["saturate"] and fmt.has_zero and fmt in ML_DTYPES_NAMES:
            with np.errstate(all="ignore"):
                found[case.name] = case.inputs["x"].astype(_ml(ml_dtypes, case))
    for case in kit.cases("sum", "operator"):
        formats = [case.attributes[name]["fmt"] for name in ("a", "b")]
        if formats == ["E4M3FN", "E4M3FN"] and "block" not in case.attributes:
            a, b = (
                case.inputs[name].view(ml_dtypes.float8_e4m3fn).astype(np.float64)
                for name in ("a", "b")
            )
            found[case.name] = (a @ b).astype(np.float32) + np.float32(0)
    return found


def _ml(ml_dtypes, case):
    return getattr(ml_dtypes, ML_DTYPES_NAMES[FLOAT_FORMATS[case.attributes["fmt"]]])


def torch_backend(torch, kit):
    """Saturating encoding, decoding and quantization by torch's float8 types; sums in float64."""
    types = {"E4M3FN": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}
    found = {}
    for case in kit.cases("decode"):
        if case.attributes["fmt"] in types:
            codes = torch.from_numpy(case.inputs["codes"].copy())
            found[case.name] = codes.view(types[case.attributes["fmt"]]).float().numpy()
    for case in [*kit.cases("encode", "codec"), *kit.cases("quantize", "operator")]:
        how = case.attributes
        if (
            how["fmt"] in types
            and how.get("saturate", True)
            and how.get("rounding", "nearest") == "nearest"
        ):
            x = torch.from_numpy(case.inputs["x"].copy())
            scale = np.asarray(case.inputs.get("scale", np.float32(1)))
            if how.get("block") is not None:
                scale = scale.repeat(how["block"], axis=how["axis"])[:, : x.shape[1]]
            elif "axis" in how:
                scale = scale[:, None]  # a row each
            x = x / torch.from_numpy(scale)
            found[case.name] = torch_encode(torch, x, types[how["fmt"]])
    return found


def torch_encode(torch, x, dtype):
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype).view(torch.uint8).numpy()


def torch_layer(torch, kit, wide_gelu=True, site="encoder.layer.0", case="model/0"):
    """One encoder layer in torch: FP8 products, everything else in float32, rounded to bfloat16.

    But for GELU: its tail, as torch computes it in float32, cancels.
    """
    found = {}

    def array(name):
        return torch.from_numpy(np.array(kit.arrays[name]))

    def bfloat16(x):
        return x.to(torch.bfloat16).float()

    def keep(name, x):
        found[f"{case}/{site}.{name}"] = x.numpy()
        return x

    def codes(name, x, operand="a"):
        scale = array(f"scales/{site}.{name}/{operand}.scale")
        encoded = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        keep(f"{name}/{operand}", encoded.view(torch.uint8))
        return encoded.float(), scale

    def linear(name, x):
        values, scale = codes(name, x)
        weight = array(f"weights/{site}.{name}.weight").view(torch.float8_e4m3fn).float()
        total = values @ weight.T
        keep(f"{name}/sum", total)
        total = total * (scale * array(f"weights/{site}.{name}.weight.scale"))
        total = keep(f"{name}/product", total + array(f"weights/{site}.{name}.bias"))
        return keep(f"{name}/result", bfloat16(total))

    def product(name, x, y):
        (a, a_scale), (b, b_scale) = codes(name, x), codes(name, y, "b")
        total = keep(f"{name}/sum", a @ b)
        total = keep(f"{name}/product", total * (a_scale * b_scale))
        return keep(f"{name}/result", bfloat16(total))

    def layer_norm(name, norm, x, residual):
        total = keep(f"{name}/add", bfloat16(x + residual))
        weight, bias = (array(f"weights/{site}.{norm}.{part}") for part in ("weight", "bias"))
        normalised = torch.nn.functional.layer_norm(total, weight.shape, weight, bias, 1e-12)
        return keep(f"{name}/layer_norm", bfloat16(normalised))

    def split(x):
        return x.view(1, x.shape[0], 2, -1).transpose(1, 2)

    x = array(f"{case}/embeddings/layer_norm")
    query, key, value = (linear(f"attention.self.{n}", x) for n in ("query", "key", "value"))
    scores = product("attention.scores", split(query), split(key).mT)
    scores = keep("attention.scores/multiply", bfloat16(scores * np.float32(1 / 8)))
    weights = keep("attention.scores/softmax", bfloat16(torch.softmax(scores, -1)))
    context = product("attention.context", weights, split(value))
    context = context[0].transpose(0, 1).reshape(x.shape)
    attended = linear("attention.output.dense", context)
    x = layer_norm("attention.output.dense", "attention.output.LayerNorm", attended, x)
    gelu = torch.nn.functional.gelu
    inner = linear("intermediate.dense", x)
    inner = keep(
        "intermediate.dense/gelu", bfloat16(gelu(inner.double() if wide_gelu else inner).float())
    )
    layer_norm("output.dense", "output.LayerNorm", linear("output.dense", inner), x)
    return found


def torch_attention(torch, kit, case="tiles", keys=16, offset=8, of_codes=False):
    """Attention over tiles of keys in torch: float8 codes, products and exponentials in float64."""
    place = f"operator/attention-{case}"
    dtype = torch.float8_e5m2 if case == "whole" else torch.float8_e4m3fn
    operands = "operator/attention-" + ("e5m2" if case == "whole" else "e4m3fn")
    found = {}

    def array(name):
        return torch.from_numpy(np.array(kit.arrays[name]))

    def keep(what, x):
        if f"{place}/{what}" in kit.arrays:  # cases of the same scores have them once
            found[f"{place}/{what}"] = x.numpy()
        return x

    def power(x, offset):
        return (x.double().exp() * 2.0**offset).float()

    q, k, v = (array(f"{operands}/{role}").view(dtype).double() for role in "qkv")
    q_scale, k_scale, v_scale = (array(f"operator/attention/{role}.scale") for role in "qkv")
    factor = np.float32(1 / np.sqrt(q.shape[-1]))
    bias = array(f"{operands}/bias") if f"{operands}/bias" in kit.arrays else None
    maximum = total = output = None
    for i, start in enumerate(range(0, k.shape[-1], keys)):
        part = slice(start, start + keys)
        x = keep(f"{i}/sum", (q @ k[..., part]).float()) * (q_scale * k_scale) * factor
        x = keep(f"{i}/scores", x if bias is None else x + bias[..., part])
        before, maximum = maximum, x.amax(-1, keepdim=True)
        if before is not None:
            maximum = torch.maximum(before, maximum)
        keep(f"{i}/maximum", maximum)
        weights = keep(f"{i}/weights", power(x.double() - maximum, offset))
        codes = weights.clamp(max=torch.finfo(dtype).max).to(dtype)
        keep(f"{i}/codes", codes.view(torch.uint8))
        summed = codes.double() if of_codes else weights.double()
        new = keep(f"{i}/row_sum", summed.sum(-1, keepdim=True).float())
        product = keep(f"{i}/product", (codes.double() @ v[..., part, :]).float())
        if before is None:
            total, output = new, product
            continue
        rescale = keep(f"{i}/rescale", power(before.double() - maximum, 0))
        total = keep(f"{i}/total", total * rescale + new)
        output = keep(f"{i}/output", output * rescale + product)
    keep("attention", output * (1 / total * v_scale))
    return found


def onnx_backend(onnx, kit):
    """Encoding by ONNX's Cast with saturation, in the reference evaluator."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    types = {
        "E4M3FN": onnx.TensorProto.FLOAT8E4M3FN,
        "E5M2": onnx.TensorProto.FLOAT8E5M2,
    }
    found = {}
    for case in kit.cases("encode"):
        how = case.attributes
        if how["fmt"] not in types or how["rounding"] != "nearest":
            continue
        node = onnx.helper.make_node(
            "Cast", ["x"], ["y"], to=types[how["fmt"]], saturate=int(how["saturate"])
        )
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
        y = onnx.helper.make_tensor_value_info("y", types[how["fmt"]], [None])
        graph = onnx.helper.make_graph([node], "cast", [x], [y])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
        with np.errstate(all="ignore"):
            (codes,) = ReferenceEvaluator(model).run(None, {"x": case.inputs["x"]})
        found[case.name] = codes
    return found
