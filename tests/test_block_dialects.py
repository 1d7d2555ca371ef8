"""npfp8.testing.check_block_quantizer, used as by a user: it names rules, mistakes and parties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_script

import npfp8
from npfp8 import BLOCK_FORMATS, E2M1, MXFP4, MXFP8_E4M3, NVFP4, BlockFormat, quantize, testing
from npfp8.blocks import inputs
from npfp8.blocks.layouts import pack_codes, pack_scales
from npfp8.dialects import BlockReport
from npfp8.formats import IntFormat

SOURCES = ("float32", "bfloat16", "float16")
by_format = pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)
check = testing.check_block_quantizer


def rules_of(fmt: BlockFormat) -> list[str]:
    return list(npfp8.POWER_RULES if fmt.powers_of_two else npfp8.RATIO_RULES)


def by(fmt: BlockFormat, rule: str) -> Callable[[Any], Any]:
    return lambda x: quantize(x, fmt, rule=rule)


@pytest.mark.parametrize("source", SOURCES)
@by_format
def test_every_rule_is_named(fmt: BlockFormat, source: str, ml_dtypes: ModuleType) -> None:
    known = check(by(fmt, "exact" if fmt == NVFP4 else "floor"), fmt, source=source)
    taken = [rule for rule in rules_of(fmt) if rule not in known.refused]
    assert len(taken) > 4
    for rule in taken:
        report = check(by(fmt, rule), fmt, source=source)
        assert rule in report.follows
        assert report.refused == known.refused
        if source == "float32":
            assert report.follows == (rule,)  # the inputs tell all rules apart
        assert len(report.follows) + len(report.differences) == len(taken)
    for rule in known.refused:
        with pytest.raises(ValueError, match=r"expected"):
            check(by(fmt, rule), fmt, rule, source)


def test_the_nearest_rule_is_first() -> None:
    def mine(x: np.ndarray) -> Any:
        q = quantize(x, MXFP4, rule="microxcaling")
        assert q.scale_codes is not None
        q.scale_codes[0, 0] ^= 1
        return q.codes, q.scale_codes

    report = check(mine, MXFP4)
    assert not report.follows
    first = report.differences[0]
    tensors = inputs.hard_inputs(MXFP4) | inputs.wide_inputs(MXFP4)
    assert (first.rule, first.scales, first.codes) == ("microxcaling", len(tensors), 0)
    assert (first.input, first.index) == ("normal", (0, 0))
    assert first.scale_expected ^ 1 == first.scale_found
    assert "nearest microxcaling" in repr(report)
    assert f"microxcaling: {first.scales} scales and 0 codes differ; first in 'normal'" in str(
        report
    )


def test_a_named_rule_is_a_check() -> None:
    assert check(by(NVFP4, "te"), NVFP4, rule="te").follows == ("te",)
    with pytest.raises(AssertionError, match=r"NVFP4, float32: rule te: \d+ scales .* found 0x"):
        check(by(NVFP4, "torchao"), NVFP4, rule="te")
    with pytest.raises(AssertionError, match="looks like the rule te with -0 encoded as 0"):
        check(zero_unsigned(by(NVFP4, "te")), NVFP4, rule="te")
    with pytest.raises(ValueError, match="rule: expected one of"):
        check(by(NVFP4, "te"), NVFP4, rule="floor")
    with pytest.raises(ValueError, match="rule te: expected elements"):
        check(by(MXFP4, "floor"), MXFP4, rule="te")


def zero_unsigned(quantizer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def mine(x: np.ndarray) -> Any:
        q = quantizer(x)
        return np.where(q.codes == 8, 0, q.codes), q.scale_codes, q.tensor_scale

    return mine


def other_ties(fmt: BlockFormat, rounding: str) -> Callable[[Any], Any]:
    def mine(x: np.ndarray) -> Any:
        q = quantize(x, fmt, rule="rceil")
        assert q.scale_codes is not None
        exponents = q.scale_codes.astype(np.int64).repeat(fmt.block, axis=1) - 127
        scaled = np.ldexp(x.astype(np.float64), -exponents)
        return npfp8.encode(scaled, fmt.element, rounding=rounding), q.scale_codes

    return mine


@by_format
def test_planted_faults(fmt: BlockFormat) -> None:
    rule = "te" if fmt == NVFP4 else "rceil"

    def planted(change: Callable[[Any, Any, Any], tuple[Any, ...]]) -> BlockReport:
        def mine(x: np.ndarray) -> Any:
            q = quantize(x, fmt, rule=rule)
            return change(q.codes, q.scale_codes, q.tensor_scale)

        return check(mine, fmt)

    faults: dict[str, Callable[[Any, Any, Any], tuple[Any, ...]]] = {
        f"scales in the layout {layout}": (
            lambda c, s, t, layout=layout: (c, pack_scales(s, layout), t)
        )
        for layout in ("128x4", "8x4", "4x4", "te-columnwise")  # te-rowwise is linear here
    }
    if fmt != NVFP4:
        faults |= {
            "the scale's exponent without its bias": lambda c, s, t: (
                c,
                (s.astype(int) - 127).astype(np.int8),
            ),
            "the scale's exponent too large by 1": lambda c, s, t: (c, s + np.uint8(1)),
            "the scale inverted": lambda c, s, t: (c, 254 - s),
        }
    else:
        faults["the tensor scale multiplied by 0.5"] = lambda c, s, t: (c, s, np.float64(t) / 2)
    if fmt.element == E2M1:
        faults["the high nibble first"] = lambda c, s, t: (
            pack_codes(c, fmt.element, "high-first"),
            s,
            t,
        )
    elif getattr(fmt.element, "bits", 8) == 6:
        faults["codes in the layout split"] = lambda c, s, t: (
            pack_codes(c, fmt.element, "split"),
            s,
        )
    for name, change in faults.items():
        report = planted(change)
        assert not report.follows, name
        assert report.mistake == f"the rule {rule} with {name}"


STORED = {
    "multiplier": "a factor of the values",
    "divisor": "a divisor of the values",
    "absmax": "the largest magnitude",
}


@pytest.mark.parametrize("rule", npfp8.RATIO_RULES)
def test_a_tensor_scale_of_another_meaning(rule: str) -> None:
    how = npfp8.RATIO_RULES[rule]

    def planted(number: Callable[[Any, Any], Any]) -> BlockReport:
        def mine(x: np.ndarray) -> Any:
            q = quantize(x, NVFP4, rule=rule)
            with np.errstate(all="ignore"):
                return q.codes, q.scale_codes, number(q.tensor_scale, np.abs(x).max())

        return check(mine, NVFP4)

    inverted = planted(lambda t, g: np.float32(1) / t).mistake
    assert inverted == f"the rule {rule} with the tensor scale inverted"
    meanings: dict[str, Callable[[Any, Any], Any]] = {
        "multiplier": lambda t, g: how.multiplier(t, 6.0, 448.0),
        "divisor": lambda t, g: how.divisor(t, 6.0, 448.0),
        "absmax": lambda t, g: g,
    }
    for meaning, number in meanings.items():
        report = planted(number)
        if meaning == how.stored:
            assert report.follows == (rule,)
        elif "absmax" not in (meaning, how.stored):
            assert report.mistake == inverted
        else:
            said = f"stored as {STORED[meaning]}, not as {STORED[how.stored]}"
            assert report.mistake == f"the rule {rule} with the tensor scale {said}"


def elements(x: np.ndarray, scales: Any, fmt: BlockFormat, **how: Any) -> Any:
    """Encode numbers under scales that are powers of two."""
    exponents = scales.astype(np.int64).repeat(fmt.block, axis=1) - 127
    with np.errstate(over="ignore"):
        return npfp8.encode(np.ldexp(x.astype(np.float64), -exponents), fmt.element, **how)


def at_least(x: np.ndarray, smallest: int) -> Any:
    scales = np.maximum(scales_of(x), np.uint8(smallest))
    return elements(x, scales, MXFP4), scales


def scales_of(x: np.ndarray, fmt: BlockFormat = MXFP4, rule: str = "rceil") -> Any:
    return quantize(x, fmt, rule=rule).scale_codes


def ties_up(x: np.ndarray) -> Any:
    scales = scales_of(x)
    up, down = (
        elements(x, scales, MXFP4, rounding=rounding)
        for rounding in ("nearest_away", "nearest_toward_zero")
    )
    return np.where(x > 0, up, down), scales


def narrowed(x: np.ndarray, source: str, fmt: BlockFormat, rule: str) -> Any:
    return quantize(inputs.to_source(x, source), fmt, rule=rule)


def flushed(x: np.ndarray, zero: Any, fmt: BlockFormat, rule: str) -> Any:
    return quantize(np.where(np.abs(x) < 2.0**-126, zero, x), fmt, rule=rule)


def larger_blocks(x: np.ndarray) -> Any:
    amax = np.abs(x).reshape(len(x), -1, 64).max(axis=2).repeat(2, axis=1)
    scales = scales_of(amax.repeat(32, axis=1))
    return elements(x, scales, MXFP4), scales


def nvfp4(change: Callable[[Any, Any, Any, Any], Any], rule: str = "te") -> Callable[[Any], Any]:
    def mine(x: np.ndarray) -> Any:
        q = quantize(x, NVFP4, rule=rule)
        return change(x, q.codes, q.scale_codes, q.tensor_scale)

    return mine


def nvfp4_ties(x: np.ndarray, codes: Any, scales: Any, number: Any) -> Any:
    """ModelOpt's quotients, on ties away from zero, with the sign of -0."""
    with np.errstate(all="ignore"):
        factors = npfp8.decode(scales, npfp8.E4M3FN) * number
        scaled = x / factors.repeat(16, axis=1)
    scaled = np.where(np.isnan(scaled), np.float32(0), scaled)
    return npfp8.encode(scaled, E2M1, rounding="nearest_away"), scales, number


def nvfp4_scales_cut(x: np.ndarray, codes: Any, scales: Any, number: Any) -> Any:
    """The rule exact with scales of blocks that are rounded toward zero."""
    amax = np.abs(x).reshape(len(x), -1, 16).max(axis=2).astype(np.float64)
    factors = 6.0 * np.float64(number)
    scales = npfp8.encode(amax / factors, npfp8.E4M3FN, rounding="toward_zero")
    factors = (npfp8.decode(scales, npfp8.E4M3FN, np.float64) * number).repeat(16, axis=1)
    return npfp8.encode(x / np.where(factors == 0, np.inf, factors), E2M1), scales, number


#: Quantizers with faults: the format, the fault's name, the function.
FAULTS: list[tuple[BlockFormat, str, Callable[[Any], Any]]] = [
    (MXFP4, "blocks along axis 0", lambda x: quantize(x, MXFP4, axis=0, rule="rceil")),
    (NVFP4, "blocks along axis 0", lambda x: quantize(x, NVFP4, axis=0)),
    (MXFP4, "ties rounded up", ties_up),
    (MXFP4, "no scale below 0x01", lambda x: (by(MXFP4, "rceil")(x).codes, at_least(x, 1)[1])),
    (MXFP4, "no scale below 0x6B, and elements to match", lambda x: at_least(x, 107)),
    (
        MXFP4,
        "scales twice as large",
        lambda x: (elements(x, s := np.minimum(scales_of(x), 253) + np.uint8(1), MXFP4), s),
    ),
    (MXFP4, "other scales, and elements to match", larger_blocks),
    (
        MXFP8_E4M3,
        "numbers beyond the largest not saturated",
        lambda x: (
            elements(x, s := scales_of(x, MXFP8_E4M3, "floor"), MXFP8_E4M3, saturate=False),
            s,
        ),
    ),
    (
        MXFP4,
        "subnormal numbers flushed to zero",
        lambda x: flushed(x, np.copysign(np.float32(0), x), MXFP4, "rceil"),
    ),
    (
        MXFP4,
        "subnormal numbers flushed to +0",
        lambda x: flushed(x, np.float32(0), MXFP4, "rceil"),
    ),
    (NVFP4, "subnormal numbers flushed to zero", lambda x: flushed(x, 0 * x, NVFP4, "te")),
    (
        MXFP4,
        "numbers rounded to bfloat16 first",
        lambda x: narrowed(x, "bfloat16", MXFP4, "rceil"),
    ),
    (NVFP4, "numbers rounded to float16 first", lambda x: narrowed(x, "float16", NVFP4, "te")),
    (MXFP4, "the sign of -0 itself lost", lambda x: quantize(x + 0, MXFP4, rule="rceil")),
    (
        MXFP4,
        "0 encoded as -0",
        lambda x: (np.where((c := by(MXFP4, "rceil")(x).codes) == 0, 8, c), scales_of(x)),
    ),
    (MXFP4, "the signs lost", lambda x: (by(MXFP4, "rceil")(x).codes & 7, scales_of(x))),
    (
        MXFP4,
        "codes in the layout ptx",
        lambda x: (pack_codes(by(MXFP4, "rceil")(x).codes, E2M1, "ptx"), scales_of(x)),
    ),
    (
        MXFP4,
        "codes in the layout ptx-padded",
        lambda x: (pack_codes(by(MXFP4, "rceil")(x).codes, E2M1, "ptx-padded"), scales_of(x)),
    ),
    (
        MXFP4,
        "codes in the upper bits of bytes",
        lambda x: (by(MXFP4, "rceil")(x).codes << 4, scales_of(x)),
    ),
    (
        NVFP4,
        "the high nibble first and scales in the layout 128x4",
        nvfp4(lambda x, c, s, t: (pack_codes(c, E2M1, "high-first"), pack_scales(s), t)),
    ),
    (
        NVFP4,
        "the high nibble first and the tensor scale inverted",
        nvfp4(lambda x, c, s, t: (pack_codes(c, E2M1, "high-first"), s, 1 / np.float64(t or 1))),
    ),
    (
        MXFP8_E4M3,
        "elements in E5M2",
        lambda x: (
            quantize(x, npfp8.MXFP8_E5M2, rule="rceil").codes,
            scales_of(x, npfp8.MXFP8_E5M2),
        ),
    ),
]


@pytest.mark.parametrize(("fmt", "name", "mine"), FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS])
def test_a_fault_is_named(fmt: BlockFormat, name: str, mine: Callable[[Any], Any]) -> None:
    floor = "not saturated" in name or "other scales" in name
    rule = "floor" if floor else "te" if fmt == NVFP4 else "rceil"
    report = check(mine, fmt)
    assert not report.follows
    assert report.mistake == f"the rule {rule} with {name}"


def test_two_faults_at_once_are_named() -> None:
    report = check(nvfp4(nvfp4_ties, "modelopt"), NVFP4)
    both = "ties rounded away from zero and the sign of -0 itself kept"
    assert report.mistake == f"the rule modelopt with {both}"
    report = check(nvfp4(nvfp4_scales_cut, "exact"), NVFP4)
    assert (
        report.mistake == "the rule exact with some scales one code smaller, and elements to match"
    )


@pytest.mark.parametrize("source", ["float16", "bfloat16"])
def test_numbers_taken_as_float32_are_named(source: str, ml_dtypes: ModuleType) -> None:
    def mine(x: np.ndarray) -> Any:
        return quantize(x.astype(np.float32), NVFP4, rule="compressed-tensors")

    report = check(mine, NVFP4, source=source)
    assert report.mistake == "the rule compressed-tensors with numbers taken as float32"


def test_what_no_mistake_explains() -> None:
    def mine(x: np.ndarray) -> Any:
        q = quantize(x, MXFP4)
        return q.codes ^ np.uint8(1), q.scale_codes

    report = check(mine, MXFP4)
    assert not report.follows
    assert report.mistake == ""


def test_an_exception_is_told_with_the_tensor() -> None:
    def mine(x: np.ndarray) -> Any:
        if not x.any():
            raise ZeroDivisionError("no\nscale")
        return quantize(x, NVFP4)

    message = "NVFP4, float32, 'all zeros': expected codes and scales, found ZeroDivisionError: no$"
    with pytest.raises(AssertionError, match=message) as caught:
        check(mine, NVFP4)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@by_format
def test_ties(fmt: BlockFormat) -> None:
    if fmt == NVFP4:
        return
    names = {
        "nearest_away": "ties rounded away from zero",
        "nearest_toward_zero": "ties rounded toward zero",
        "toward_zero": "truncation",
    }
    for rounding, name in names.items():
        report = check(other_ties(fmt, rounding), fmt)
        assert report.mistake == f"the rule rceil with {name}"


@by_format
def test_packed_codes_are_read(fmt: BlockFormat) -> None:
    if isinstance(fmt.element, IntFormat) or fmt.element.bits == 8:
        return

    def mine(x: np.ndarray) -> Any:
        q = quantize(x, fmt)
        return pack_codes(q.codes, fmt.element), q.scale_codes, q.tensor_scale

    assert check(mine, fmt).follows == (fmt.rule,)


def test_what_is_no_result() -> None:
    right = quantize(np.ones((128, 128), np.float32), MXFP4)
    cases: list[tuple[Any, str]] = [
        (right.codes, r"expected \(codes, scale_codes\) or .* found ndarray"),
        ((right.codes,), "expected .codes, scale_codes"),
        ((right.codes[:5], right.scale_codes), r"codes: expected shape \(128, 128\), or "),
        (
            (right.codes, right.codes),
            r"scale_codes: expected shape \(128, 4\), one .* \(128, 128\)",
        ),
        ((right.codes, right.scale), "scale_codes: expected bytes, found float32"),
        ((right.codes,) * 4, "tensor_scale.*, found 4 results"),
        ((right.codes, right.scale_codes[:, :2]), "one per 32 elements of a row, found .128, 2."),
        ((right.codes, right.scale_codes * 3.0), "scale_codes: expected bytes, found float64"),
        (
            (right.codes, right.scale_codes.astype(int) * 9),
            "bytes, found numbers from 1125 to 1125",
        ),
        (([[1], [1, 2]], right.scale_codes), "codes: expected an array, .*give the bytes, as uin"),
        (quantize(np.ones((128, 128)), MXFP8_E4M3), "expected a tensor in MXFP4, found <Quantized"),
        (quantize(np.ones((128, 128)), npfp8.E2M1), "expected a tensor in MXFP4, found <Quantized"),
    ]
    for given, message in cases:
        with pytest.raises(AssertionError, match=f"^MXFP4, float32, 'normal': .*{message}"):
            check(lambda x, given=given: given, MXFP4)
    for number, found in (([1, 2], "2"), ("one", "'one'"), (1j, "1j")):
        message = f"tensor_scale: expected one number, found {found}"
        with pytest.raises(AssertionError, match=message):
            check(lambda x, number=number: (*right_nvfp4(x)[:2], number), NVFP4)

    def beyond(x: np.ndarray) -> Any:
        q = quantize(x, MXFP8_E4M3)
        return q.codes, q.scale_codes

    with pytest.raises(AssertionError, match=r"'normal': codes: expected 0..15 for E2M1, found 2"):
        check(beyond, MXFP4)


def test_torchs_own_types_are_told(torch: ModuleType) -> None:
    def mine(x: np.ndarray) -> Any:
        q = quantize(x, MXFP4)
        return q.codes, torch.from_numpy(q.scale_codes).view(torch.float8_e8m0fnu)

    with pytest.raises(AssertionError, match=r"scale_codes: .*E|e8m0fnu; give the bytes, as uint8"):
        check(mine, MXFP4)


def right_nvfp4(x: np.ndarray) -> tuple[Any, Any, Any]:
    q = quantize(x, NVFP4)
    return q.codes, q.scale_codes, q.tensor_scale


def test_without_a_tensor_scale_only_bytes_are_compared() -> None:
    assert check(lambda x: right_nvfp4(x)[:2], NVFP4).follows == ("te",)


def test_inputs_are_not_shared_with_the_quantizer() -> None:
    def destroying(x: np.ndarray) -> Any:
        q = quantize(x, MXFP4)
        x[:] = 0
        return q

    for _ in range(2):
        assert check(destroying, MXFP4).follows == ("floor",)


def test_nan_and_infinity_are_reported_apart() -> None:
    report = check(by(MXFP8_E4M3, "torchao"), MXFP8_E4M3)
    assert report.special == ("infinity: as torchao", "NaN: as torchao")

    def finite_only(x: np.ndarray) -> Any:
        if not np.isfinite(x).all():
            raise RuntimeError("no")
        return quantize(x, MXFP8_E4M3, rule="torchao")

    report = check(finite_only, MXFP8_E4M3)
    assert report.follows == ("torchao",)
    raised = "the quantizer raises RuntimeError, the rule torchao does not"
    assert report.special == (f"infinity: {raised}", f"NaN: {raised}")


def test_a_format_of_ones_own() -> None:
    mine = BlockFormat("E4M3FN", 128, rule="rceil")
    report = check(by(mine, "rceil"), mine)
    assert report.follows == ("rceil",)
    assert "torchao" in {difference.rule for difference in report.differences}
    two_level = BlockFormat("E3M2", 16, "E4M3FN", rule="exact", tensor_scale=True)
    assert "exact" in check(by(two_level, "exact"), two_level).follows


# The inputs


def test_normal_numbers_are_normal() -> None:
    x = inputs.normal_numbers(1 << 20)
    assert abs(x.mean()) < 0.004
    assert abs(x.std() - 1) < 0.003
    for bound, share in ((1, 0.3173), (2, 0.0455), (3, 0.0027)):
        assert np.mean(np.abs(x) > bound) == pytest.approx(share, rel=0.05)


def test_no_decision_hangs_on_the_last_bits_of_a_logarithm() -> None:
    bits = np.random.PCG64(0)
    for _ in range(24):  # of 65,536 pairs each: more than a million numbers
        u, v = inputs._uniform(bits, 1 << 16), inputs._uniform(bits, 1 << 16)
        x = inputs._WIDTH * (v - 0.5) / u
        assert np.abs(inputs._excess(x, u)).min() > 1e-9


# The page, and the parties' own code

page = load_script("compare_block_quantizers")


def test_the_page_is_what_the_rules_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["compare_block_quantizers.py", "--check"])
    assert page.main() == 0, capsys.readouterr().err
    other = tmp_path / "page.md"
    other.write_text(page.PAGE.read_text(encoding="utf-8").replace("12.31", "12.32"), "utf-8")
    monkeypatch.setattr(page, "PAGE", other)
    monkeypatch.setattr(
        "sys.argv", ["compare_block_quantizers.py", "--check", "--formats", "mxfp4"]
    )
    assert page.main() == 1
    assert "the part 'MXFP4' is not what the rules give now" in capsys.readouterr().err


def test_every_rule_has_its_reason() -> None:
    plain = {"floor", "rceil", "ceil", "even", "trunc"}
    assert set(page.REASONS) == set(npfp8.POWER_RULES) - plain
    assert set(page.DIALECT_REASONS) == set(npfp8.RATIO_RULES)


@pytest.mark.parametrize("source", SOURCES)
@by_format
@pytest.mark.parametrize("rule", page.PEERS)
def test_a_party_is_named(
    rule: str, fmt: BlockFormat, source: str, torch: ModuleType, ml_dtypes: ModuleType
) -> None:
    peer = page.PEERS[rule]
    if fmt.name not in peer.formats or source not in peer.sources:
        pytest.skip(f"{rule} does not quantize {source} to {fmt}")
    try:
        quantizer = peer.quantizer(fmt)
    except (ImportError, LookupError) as error:
        pytest.skip(str(error))
    report = check(quantizer, fmt, source=source)
    assert rule in report.follows, str(report)
