"""NVFP4's dialects, bit for bit against the parties' own code and against their published rules."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import nvfp4_oracles
import pytest
from block_oracles import nearest_code
from hypothesis.extra import numpy as hnp
from nvfp4_oracles import tensors
from oracles import FLOAT32, assert_same_bits, nearest
from parties import as_torch, nibbles, party

from npfp8 import (
    E2M1,
    E4M3FN,
    E5M2,
    INT8,
    NVFP4,
    RATIO_RULES,
    UE4M3,
    BlockFormat,
    FloatFormat,
    IntFormat,
    QuantizedTensor,
    quantize,
)
from npfp8.blocks.quantize import tensor_divisor, tensor_multiplier, tensor_scale_of

TENSORS = tensors()
#: The types of numbers; NumPy has bfloat16 from ml_dtypes, a peer.
DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.peers), "float16"]
ONE_LEVEL = BlockFormat(E2M1, 16, E4M3FN, rule="te", name="one level")


def dtype_named(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    reason = "ml_dtypes is not installed (extra: peers)"
    return np.dtype(pytest.importorskip("ml_dtypes", reason=reason).bfloat16)


def as_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        rounded = x.astype(dtype_named(dtype))
    return np.where(np.isfinite(rounded), rounded, np.asarray(6, rounded.dtype))


Party = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def torchao(torch: ModuleType) -> Party:
    module = party("torchao.prototype.mx_formats.nvfp4_tensor")

    def run(x: np.ndarray, two_level: bool = True, number: float | None = None) -> SimpleNamespace:
        hp = as_torch(torch, x)
        p = None
        if two_level:
            p = module.per_tensor_amax_to_scale(hp.abs().max())
            p = p if number is None else torch.tensor(number)
        found = module.NVFP4Tensor.to_nvfp4(hp, 16, per_tensor_scale=p)
        return SimpleNamespace(
            codes=nibbles(found.qdata.view(torch.uint8).numpy()),
            scale_codes=found.scale.view(torch.uint8).numpy(),
            tensor_scale=None if p is None else p.numpy(),
            values=found.dequantize(torch.float32).numpy(),
        )

    return run


@pytest.fixture(scope="module")
def modelopt(torch: ModuleType) -> Party:
    module = party("modelopt.torch.quantization.qtensor.nvfp4_tensor")
    cls = module.NVFP4QTensor

    def run(x: np.ndarray, number: float | None = None) -> SimpleNamespace:
        given = None if number is None else torch.tensor(number)
        hp = as_torch(torch, x)
        q, scale, number_2 = cls.quantize(hp, 16, weights_scaling_factor_2=given)
        arguments = {"scale": scale, "double_scale": number_2, "block_sizes": {-1: 16}}
        whole = x.shape[1] % 16 == 0  # it does not dequantize what it filled up
        return SimpleNamespace(
            codes=nibbles(q._quantized_data.numpy()),
            scale_codes=scale.view(torch.uint8).numpy(),
            tensor_scale=number_2.numpy(),
            values=q.dequantize(torch.float32, **arguments).numpy() if whole else None,
        )

    return run


@pytest.fixture(scope="module")
def ct(torch: ModuleType, compressed_tensors: ModuleType) -> Party:
    quantization = party("compressed_tensors.quantization")
    utils = party("compressed_tensors.quantization.utils")
    compressor = party("compressed_tensors.compressors.nvfp4.base").NVFP4PackedCompressor
    helpers = party("compressed_tensors.compressors.nvfp4.helpers")
    forward = party("compressed_tensors.quantization.lifecycle.forward")
    args = quantization.QuantizationArgs(
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        symmetric=True,
        scale_dtype=torch.float8_e4m3fn,
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)

    def run(x: np.ndarray, two_level: bool = True, number: float | None = None) -> SimpleNamespace:
        weight = as_torch(torch, x)
        divisor = None
        if two_level:
            divisor = utils.generate_gparam(weight.min(), weight.max())
            divisor = divisor if number is None else torch.tensor([number])
        scale, _ = utils.compute_dynamic_scales_and_zp(weight, args, None, global_scale=divisor)
        state = {"weight": weight, "weight_scale": scale, "weight_global_scale": divisor}
        packed = compressor.compress(state, scheme)
        codes = helpers.unpack_fp4_from_uint8(
            packed["weight_packed"], *x.shape, dtype=torch.float32
        )
        values = forward.dequantize(
            codes,
            packed["weight_scale"].to(torch.float32),
            args=args,
            global_scale=divisor,
            dtype=torch.float32,
        )
        return SimpleNamespace(
            codes=nibbles(packed["weight_packed"].numpy()),
            scale_codes=packed["weight_scale"].view(torch.uint8).numpy(),
            tensor_scale=None if divisor is None else divisor.numpy().reshape(()),
            values=values.numpy(),
        )

    return run


@pytest.fixture(scope="module")
def quark(torch: ModuleType) -> Party:
    party("quark.torch")  # it leaves parts of itself loaded if one of its own packages is missing
    templates = party("quark.torch.quantization.config.template")
    quantizers = party("quark.torch.quantization.tensor_quantize")

    def run(x: np.ndarray) -> SimpleNamespace:
        """Emulate as Quark does; it keeps no codes, but the scales of blocks in float32."""
        spec = templates.FP4Block16ScaleE4M3Scheme().config.weight
        quantizer = quantizers.FakeQuantizeBase.get_fake_quantize(spec)
        quantizer.enable_observer(True)
        quantizer(as_torch(torch, x))
        quantizer.enable_observer(False)
        values = quantizer(as_torch(torch, x)).to(torch.float32).numpy()
        scale, number = (one.scale.numpy() for one in quantizer)
        return SimpleNamespace(values=values, scale=scale, tensor_scale=number)

    return run


def assert_same(q: QuantizedTensor, expected: Any, unsigned_zero: bool = False) -> None:
    """Compare codes, scales, the number of the tensor and the values, bit for bit."""
    assert_same_bits(q.codes, expected.codes)
    assert q.scale_codes is not None
    assert_same_bits(q.scale_codes, expected.scale_codes)
    if (number := getattr(expected, "tensor_scale", None)) is not None:
        assert_same_bits(q.tensor_scale, number)
    values = q.dequantize()
    if unsigned_zero:  # ModelOpt reads the code of -0 as +0
        np.testing.assert_array_equal(values, expected.values)
        return
    nan = np.isnan(values)
    np.testing.assert_array_equal(nan, np.isnan(expected.values))
    assert_same_bits(values[~nan], expected.values[~nan])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TENSORS)
def test_torchao(torchao: Party, name: str, dtype: str) -> None:
    x = as_dtype(TENSORS[name], dtype)
    assert_same(quantize(x, NVFP4, rule="torchao"), torchao(x))
    assert_same(quantize(x, ONE_LEVEL, rule="torchao"), torchao(x, two_level=False))
    for number in (2.0**-10, 0.37):
        q = quantize(x, NVFP4, rule="torchao", tensor_scale=number)
        assert_same(q, torchao(x, number=number))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TENSORS)
def test_modelopt(modelopt: Party, name: str, dtype: str) -> None:
    x = as_dtype(TENSORS[name], dtype)
    assert_same(quantize(x, NVFP4, rule="modelopt"), modelopt(x), unsigned_zero=True)
    for number in (2.0**-10, 0.37):
        q = quantize(x, NVFP4, rule="modelopt", tensor_scale=number)
        assert_same(q, modelopt(x, number=number), unsigned_zero=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TENSORS)
def test_compressed_tensors(ct: Party, name: str, dtype: str) -> None:
    x = as_dtype(TENSORS[name], dtype)
    rule = "compressed-tensors"
    assert_same(quantize(x, NVFP4, rule=rule), ct(x))
    assert_same(quantize(x, ONE_LEVEL, rule=rule), ct(x, two_level=False))
    for number in (2.0**10, 37.0):
        assert_same(quantize(x, NVFP4, rule=rule, tensor_scale=number), ct(x, number=number))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TENSORS)
def test_quark(quark: Party, name: str, dtype: str) -> None:
    x = as_dtype(TENSORS[name], dtype)
    expected, q = quark(x), quantize(x, NVFP4, rule="quark")
    assert_same_bits(q.tensor_scale, expected.tensor_scale)
    assert_same_bits(q.scale, expected.scale.reshape(q.scale.shape))
    values = q.dequantize().astype(dtype_named(dtype)).astype(np.float32)
    assert_same_bits(values, expected.values)


def test_modelopt_pads_with_zeros(modelopt: Party) -> None:
    x = TENSORS["normal"][:, :40]
    expected, q = modelopt(x), quantize(x, NVFP4, rule="modelopt")
    assert_same_bits(q.codes, expected.codes[:, :40])
    assert_same_bits(q.scale_codes, expected.scale_codes)


@pytest.mark.parametrize("special", [np.inf, -np.inf])
def test_parties_with_infinities(
    torchao: Party, modelopt: Party, ct: Party, special: float
) -> None:
    x = TENSORS["normal"][:2].copy()
    x[1, 20] = special
    assert_same(quantize(x, NVFP4, rule="torchao"), torchao(x))
    assert_same(quantize(x, ONE_LEVEL, rule="torchao"), torchao(x, two_level=False))
    assert_same(quantize(x, NVFP4, rule="modelopt"), modelopt(x))
    assert_same(quantize(x, NVFP4, rule="compressed-tensors"), ct(x))


def test_parties_with_a_nan(torchao: Party, modelopt: Party, ct: Party) -> None:
    """Values and numbers are the parties'; the bits of a NaN's scale and codes are not theirs."""
    x = TENSORS["normal"][:2].copy()
    x[1, 20] = np.nan
    for rule, run in (("torchao", torchao), ("modelopt", modelopt), ("compressed-tensors", ct)):
        expected, q = run(x), quantize(x, NVFP4, rule=rule)
        np.testing.assert_array_equal(q.dequantize(), expected.values)
        np.testing.assert_array_equal(q.tensor_scale, expected.tensor_scale)
        assert q.scale_codes is not None
        assert_same_bits(q.scale_codes & 0x7F, expected.scale_codes & 0x7F)


ORACLES = {"te": nvfp4_oracles.te, "vllm": nvfp4_oracles.vllm, "exact": nvfp4_oracles.exact}


@pytest.mark.parametrize("rule", ORACLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TENSORS)
def test_published_rules(rule: str, name: str, dtype: str) -> None:
    rows = 7 if name.startswith("at scales") else 16
    x = as_dtype(TENSORS[name][::rows], dtype)
    q = quantize(x, NVFP4, rule=rule)
    assert q.tensor_scale is not None
    g = np.abs(x.astype(np.float32)).max()
    with np.errstate(divide="ignore", over="ignore"):
        number = {"te": g, "vllm": np.float32(2688) / g, "exact": g / np.float32(2688)}[rule]
    if rule == "exact":
        number = np.float32(1) if g == 0 else max(number, np.finfo(np.float32).tiny)
    assert_same_bits(q.tensor_scale, np.float32(number))
    assert_same(q, ORACLES[rule](x.astype(np.float64), float(number)))


numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-8, 8, width=32),
    st.sampled_from([0.0, -0.0, 0.25, 0.75, 1.25, 2.5, 5.0, 6.0, 2688.0, 2.0**-149, 3.4e38]),
)
arrays = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=numbers
)


@hypothesis.given(arrays, st.sampled_from(sorted(ORACLES)))
@hypothesis.settings(max_examples=60)
def test_any_numbers(x: np.ndarray, rule: str) -> None:
    x = x[:4]
    q = quantize(x, NVFP4, rule=rule)
    assert q.tensor_scale is not None
    hypothesis.assume(np.isfinite(q.tensor_scale))
    assert_same(q, ORACLES[rule](x.astype(np.float64), float(q.tensor_scale)))


@pytest.mark.parametrize("dtype", DTYPES)
@hypothesis.given(x=arrays, rule=st.sampled_from(sorted(RATIO_RULES)))
@hypothesis.settings(max_examples=30)
def test_any_layout(x: np.ndarray, rule: str, dtype: str) -> None:
    """Another axis, a short last block and another memory order change nothing."""
    hypothesis.assume(dtype in RATIO_RULES[rule].sources)
    x = as_dtype(x, dtype)
    q = quantize(x, NVFP4, rule=rule)
    padded = quantize(np.pad(x, [(0, 0), (0, -x.shape[1] % 16)]), NVFP4, rule=rule)
    assert_same_bits(q.codes, padded.codes[:, : x.shape[1]])
    assert_same_bits(q.scale_codes, padded.scale_codes)
    for other in (x.T, np.ascontiguousarray(x.T), np.asfortranarray(x.T)):
        turned = quantize(other, NVFP4, axis=0, rule=rule)
        assert_same_bits(turned.codes.T, q.codes)
        assert_same_bits(turned.scale_codes.T, q.scale_codes)
    stacked = quantize(np.stack([x, x], axis=1), NVFP4, axis=2, rule=rule)
    assert_same_bits(stacked.codes[:, 1], q.codes)


@pytest.mark.parametrize("rule", RATIO_RULES)
@pytest.mark.parametrize("name", TENSORS)
def test_input_is_unchanged_and_bytes_make_the_tensor_again(rule: str, name: str) -> None:
    x = TENSORS[name]
    before = x.copy()
    q = quantize(x, NVFP4, rule=rule)
    assert_same_bits(x, before)
    if q.tensor_scale is not None and not np.isfinite(q.tensor_scale):
        return  # vLLM's number for zeros and tiny tensors
    again = QuantizedTensor(
        q.codes, None, q.block_format, 1, scale_codes=q.scale_codes, tensor_scale=q.tensor_scale
    )
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())
    assert again.block_format.rule == rule


#: Elements, lengths of blocks and scales of one's own; one product of the largest two is beyond
#: float32.
OWN = (
    BlockFormat(INT8, 16, UE4M3, "exact", True),
    BlockFormat("E3M2", 8, E5M2, "exact", True),
    BlockFormat("E4M3FN", 33, "E4M3FNUZ", "exact"),
    BlockFormat("E2M3", 5, E2M1, "exact", True),
    BlockFormat("E5M2FNUZ", 7, "P3109_K8P3", "exact", True),
    BlockFormat("P3109_K8P4", 1, "E3M4FN", "exact"),
    BlockFormat(IntFormat(-8, 7, "int8", fraction_bits=3), 3, UE4M3, "exact", True),
    BlockFormat("E8M0FNU", 3, UE4M3, "exact", True),
)


@pytest.mark.parametrize("fmt", OWN, ids=lambda fmt: f"{fmt.element} in {fmt.block}")
def test_exact_in_other_formats(fmt: BlockFormat) -> None:
    """Each number is rounded once from real numbers, in fractions."""
    rng = np.random.default_rng(4)
    element, scales = fmt.element, fmt.scale_format
    largest = Fraction(element.max)
    for low, high in ((-10, 1), (-149, 126), (-149, -140), (110, 126)):
        x = rng.choice(element.values[np.isfinite(element.values)], (4, 40)) / element.max
        x = x * (1 + 2.0**-23 * rng.integers(-1, 2, x.shape)) * 1.5
        x = np.ldexp(x, rng.integers(low, high, (4, 1))).astype(np.float32)
        if not getattr(element, "signed", True):
            x = np.abs(x)
        q = quantize(x, fmt)
        t = Fraction(1)
        if fmt.tensor_scale:
            g = Fraction(float(np.abs(x).max()))
            t = Fraction(max(nearest(g / (largest * Fraction(scales.max)), FLOAT32), 2.0**-126))
            assert float(q.tensor_scale) == t
        for i, row in enumerate(x):
            for j, block in enumerate(np.split(row, range(fmt.block, row.size, fmt.block))):
                numbers = [Fraction(float(one)) for one in block]
                code = nearest_code(max(map(abs, numbers)) / (largest * t), scales)
                assert q.scale_codes[i, j] == code
                scale = Fraction(float(scales.values[code])) * t
                expected = [
                    nearest_code(abs(n) / scale if scale else Fraction(0), element, bool(sign))
                    for n, sign in zip(numbers, np.signbit(block), strict=True)
                ]
                found = q.codes[i, j * fmt.block : (j + 1) * fmt.block].view(np.uint8)
                assert found.tolist() == expected


def test_exact_refuses_scales_that_float32_does_not_hold() -> None:
    half = BlockFormat(IntFormat(-127, 127, "int8", fraction_bits=8), 4, E4M3FN, "exact", True)
    x = np.float32([3.4e38, 1, 0, -1])
    with pytest.raises(ValueError, match=r"x: expected .*finite float32 scales .*found 3.39"):
        quantize(x, half)
    assert np.isfinite(quantize(x / 4, half).dequantize()).all()
    tiny = BlockFormat(half.element, 4, FloatFormat(2, 3, 9, signed=False), "exact", True)
    message = "tensor_scale: expected a positive, finite float32 for the rule exact, found "
    with pytest.raises(ValueError, match=f"{message}inf"):
        quantize(x, tiny)
    for numbers in (x, 0 * x):
        with pytest.raises(ValueError, match=f"{message}0.0"):
            quantize(numbers, NVFP4, rule="exact", tensor_scale=0.0)


@pytest.mark.parametrize("rule", RATIO_RULES)
def test_every_rule_takes_other_formats(rule: str) -> None:
    x = TENSORS["normal"]
    signless = BlockFormat(E2M1, 16, UE4M3, rule=rule, tensor_scale=True)
    q, usual = quantize(x, signless), quantize(x, NVFP4, rule=rule)
    assert_same_bits(q.codes, usual.codes)
    assert_same_bits(q.scale_codes, usual.scale_codes)
    for fmt in (
        BlockFormat("E4M3FN", 16, "E5M2", rule=rule, tensor_scale=True),
        BlockFormat("INT8", 32, UE4M3, rule=rule, tensor_scale=True),
        BlockFormat("E2M3", 128, "E4M3FN", rule=rule, tensor_scale=True),
        BlockFormat("FIXED8", 1, "E3M4FN", rule=rule, tensor_scale=True),
    ):
        error = quantize(x, fmt).dequantize() - x
        steps = fmt.element.max / 2 if fmt.element in (INT8,) else 8
        assert np.abs(error).max() <= np.abs(x).max() / min(steps, 8), fmt


@pytest.mark.peers
def test_disagreements() -> None:
    """The rules differ as much as was measured: in bfloat16, and hardly in float32."""
    x = np.random.default_rng(0).normal(0, 0.02, (1024, 1024)).astype(np.float32)

    def differing(dtype: str) -> dict[str, tuple[float, float]]:
        usual = quantize(as_dtype(x, dtype), NVFP4, rule="te")
        found = {rule: quantize(as_dtype(x, dtype), NVFP4, rule=rule) for rule in RATIO_RULES}
        return {
            rule: (
                float((q.scale_codes != usual.scale_codes).mean()),
                float((q.codes % 8 != usual.codes % 8).mean()),  # Quark has no -0
            )
            for rule, q in found.items()
        }

    halves, singles = differing("bfloat16"), differing("float32")
    for rule in ("modelopt", "torchao", "quark", "exact"):
        assert halves[rule][0] == 0
        assert halves[rule][1] < 0.002
    assert halves["vllm"] == (0, 0)
    assert 0.003 < halves["compressed-tensors"][0] < 0.04
    assert 0.001 < halves["compressed-tensors"][1] < 0.02
    for scales, codes in singles.values():
        assert scales == 0
        assert codes < 1e-5


def test_numbers_of_the_tensor_by_party() -> None:
    g = np.float32(0.1)
    stored = {
        rule: float(tensor_scale_of(g, BlockFormat(E2M1, 16, E4M3FN, rule, True)))
        for rule in RATIO_RULES
    }
    assert stored["te"] == float(g)
    assert stored["modelopt"] == stored["torchao"] == float(g / np.float32(2688))
    reciprocal = np.float32(1) / g
    assert stored["compressed-tensors"] == float(reciprocal * np.float32(2688))
    for rule, number in stored.items():
        fmt = BlockFormat(E2M1, 16, E4M3FN, rule, True)
        assert RATIO_RULES[rule].divides == (RATIO_RULES[rule].stored == "divisor")
        multiplier = float(tensor_multiplier(np.float32(number), fmt))
        assert multiplier == pytest.approx(0.1 / 2688, rel=1e-6)
        assert float(tensor_divisor(np.float32(number), fmt)) == pytest.approx(26880, rel=1e-6)


def test_blocks_of_zeros() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, 16:] = 1
    found = {rule: int(quantize(x, NVFP4, rule=rule).scale_codes[0, 0]) for rule in RATIO_RULES}
    assert found["te"] == found["vllm"] == found["exact"] == 0x00
    assert found["modelopt"] == 0x38
    assert found["torchao"] == 0x08
    assert found["compressed-tensors"] == 0x20


def test_numbers_that_are_not_finite() -> None:
    x = np.ones((1, 32), np.float32)
    x[0, 3] = np.inf
    q = quantize(x, NVFP4, rule="te")
    assert q.scale_codes.tolist() == [[0x7E, 0x23]]
    x[0, 3] = np.nan
    q = quantize(x, NVFP4, rule="te")
    assert q.scale_codes.tolist() == [[0x7F, 0x7F]]
    assert not q.codes.any()
    # vLLM's largest magnitude is that of the numbers; the tensor's comes from outside.
    q = quantize(x, NVFP4, rule="vllm", tensor_scale=2688.0)
    assert q.scale_codes.tolist() == [[0x7E, 0x7E]]
    assert q.codes[0, 3] == 7
    for bad in (np.nan, np.inf):
        x[0, 3] = bad
        with pytest.raises(ValueError, match=f"x: expected finite numbers .* exact, found {bad}"):
            quantize(x, NVFP4, rule="exact")


def test_bad_numbers_of_the_tensor() -> None:
    x = np.ones((1, 16), np.float32)
    for bad in (-1.0, np.nan, np.inf, [1.0, 2.0]):
        with pytest.raises(ValueError, match="tensor_scale: expected one finite number"):
            quantize(x, NVFP4, tensor_scale=bad)
    with pytest.raises(ValueError, match="tensor_scale: expected None"):
        quantize(x, ONE_LEVEL, tensor_scale=1.0)


def test_torchao_takes_no_float16() -> None:
    with pytest.raises(ValueError, match="x: expected float32 or bfloat16 for the rule torchao"):
        quantize(np.ones((2, 16), np.float16), NVFP4, rule="torchao")
