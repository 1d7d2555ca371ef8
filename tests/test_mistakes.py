"""One set of boundary inputs, one list of mistakes: what one instrument names, all name."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from bert_numpy.kit import open_kit, verify
from npfp8 import E2M1, E4M3FN, E5M2, E8M0FNU, encode, testing
from npfp8.codec import ROUNDINGS
from npfp8.formats import FLOAT_FORMATS
from npfp8.mistakes import (
    differing,
    encoder_mistakes,
    explain_codes,
    fitted_mistakes,
    likely_mistake,
)
from npfp8.mistakes.decoders import decoder_mistakes, differing_values, explain_values
from npfp8.vectors import DECODE, MODES, check_results, make_vectors

FORMATS = list(FLOAT_FORMATS.values())
by_format = pytest.mark.parametrize("fmt", FORMATS, ids=str)
#: Every behaviour of an encoder by tables: saturation, rounding, overflow.
BEHAVIOURS = [
    (saturate, rounding, overflow)
    for rounding in ROUNDINGS[:-1]
    for saturate, overflow in ((True, "ieee"), (False, "ieee"), (False, "special"))
    if overflow == "ieee" or rounding in ("toward_zero", "up", "down", "odd")
]


def results(vectors, found):
    return dataclasses.replace(vectors, third=found, column="found")


@functools.cache
def kit():
    return open_kit()


def causes_by_kit(name, array):
    """The report of the kit on one tensor alone."""
    (difference,) = verify(kit(), {name: array}).differences
    return difference.causes


def other_numbers(fmt):
    """A third of all bfloat16 and float16, and numbers spread over all float32."""
    bits = np.arange(0, 1 << 16, 3, dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        float16 = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    spread = (np.arange(1 << 15, dtype=np.uint64) * np.uint64(131_071)).astype(np.uint32)
    x = np.concatenate([(bits << np.uint32(16)).view(np.float32), float16, spread.view(np.float32)])
    return x[~np.isnan(x)] if fmt.nan_code is None else x


@by_format
@np.errstate(all="ignore")
def test_the_boundaries_tell_apart_every_two_mistakes(fmt):
    """What other numbers show, or tell apart, the boundary inputs do too."""
    edges = make_vectors(fmt, "nearest", "float32").inputs.view(np.float32)
    x = np.concatenate([edges, other_numbers(fmt)])
    nan = np.zeros(256, bool)
    nan[list(fmt.nan_codes)] = True
    for how in BEHAVIOURS if fmt in (E4M3FN, E5M2, E8M0FNU) else BEHAVIOURS[:: len(BEHAVIOURS) - 2]:
        groups = {}
        saturate, rounding, overflow = how
        right = ("right", lambda x: encode(x, fmt, saturate, rounding=rounding, overflow=overflow))  # noqa: B023
        for name, encoder in [right, *encoder_mistakes(fmt, *how)]:
            codes = np.asarray(encoder(x))
            assert codes.dtype == np.uint8
            codes = np.where(nan[codes], np.uint8(255), codes)
            groups.setdefault(codes[: edges.size].tobytes(), []).append((name, codes.tobytes()))
        for members in groups.values():
            names = {name for name, _ in members}
            assert len(names) == 1 or len({codes for _, codes in members}) == 1, (how, names)


@by_format
def test_one_set_of_inputs(fmt):
    """check_encoder's edge cases, the vectors' inputs and the kit's are the same numbers."""
    vectors = make_vectors(fmt, "nearest", "float32").inputs
    assert np.array_equal(vectors, kit().arrays[f"codec/{fmt}/x"].view(np.uint32))
    numbers = vectors[vectors & 0x7FFFFFFF <= 0x7F800000]
    edges = testing.edge_cases(fmt)
    assert set(numbers.tolist()) == set(edges[~np.isnan(edges)].view(np.uint32).tolist())


@pytest.mark.parametrize(
    ("fmt", "mode"),
    [
        *itertools.product((E4M3FN, E5M2), [mode for mode in MODES if "stochastic" not in mode]),
        *((E4M3FN, "stochastic-8-saturating"), (E5M2, "stochastic-13"), (E8M0FNU, "up-ieee")),
        *((E2M1, "nearest"), (E2M1, "odd-saturating")),
    ],
    ids=str,
)
@np.errstate(all="ignore")
def test_the_vectors_name_every_mistake(fmt, mode):
    """By the first name of those whose codes are the same."""
    how, vectors = MODES[mode], make_vectors(fmt, mode, "float32")
    x = vectors.inputs.view(np.float32)
    known = encoder_mistakes(
        *(fmt, how.saturate, how.rounding, how.overflow),
        random_bits=vectors.random_bits,
        bit_count=how.bit_count,
    )
    first, seen = {}, 0
    every_third = list(MODES).index(mode) % 3
    for i, (name, encoder) in enumerate(known):
        codes = np.asarray(encoder(x))
        if not (wrong := differing(vectors.codes, codes, fmt)).any():
            continue
        key = np.where(np.isnan(fmt.values[codes]), np.uint8(255), codes).tobytes()
        first.setdefault(key, name)
        seen += 1
        if i % 3 == every_third:  # each mistake in a third of the modes
            report = check_results(results(vectors, codes))
            assert report.cause == first[key], name
            assert report.wrong == report.explained == wrong.sum()
    assert seen > len(known) * (0.7 if fmt in (E4M3FN, E5M2) else 0.3)


INSTRUMENTS = [
    (E4M3FN, "nearest-saturating"),
    (E5M2, "nearest"),
    (E5M2, "down-ieee"),
]


@pytest.mark.parametrize(("fmt", "mode"), INSTRUMENTS, ids=str)
@np.errstate(all="ignore")
def test_every_mistake_by_all_three_instruments(fmt, mode):
    """Each name once: the vectors' cause is check_encoder's, and among the kit's."""
    how, vectors = MODES[mode], make_vectors(fmt, mode, "float32")
    x = vectors.inputs.view(np.float32)
    behaviour = {"rounding": how.rounding, "overflow": how.overflow}
    seen = set()
    for name, encoder in encoder_mistakes(fmt, how.saturate, *behaviour.values()):
        codes = np.asarray(encoder(x))
        if name in seen or not differing(vectors.codes, codes, fmt).any():
            continue
        seen.add(name)
        cause = check_results(results(vectors, codes)).cause
        causes = causes_by_kit(f"codec/{fmt}/{mode}", codes)
        assert cause in causes
        assert name in causes
        if len(seen) % 3:  # a third by check_encoder, which takes longest
            continue
        with pytest.raises(AssertionError) as caught:
            testing.check_encoder(encoder, fmt, how.saturate, **behaviour)
        assert str(caught.value).endswith(f"It looks like {cause}")


def by_hand(x, fault=""):
    """Encode float32 as E4M3FN, saturating, by shifts of integers, as an outsider would."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64)
    is_nan = u & 0x7FFFFFFF > 0x7F800000
    if fault == "input cut to bfloat16":
        u &= 0xFFFF0000
    if fault == "input rounded to bfloat16":
        u = u + 0x7FFF + (u >> 16 & 1) & 0xFFFF0000
    sign, magnitude = u >> 31 << 7, u & 0x7FFFFFFF
    exponent = (magnitude >> 23) - 127
    significand = magnitude & 0x7FFFFF | 0x800000
    subnormal = exponent < -6
    shift = np.minimum(np.where(subnormal, 14 - exponent, 20), 40)
    kept, half = significand >> shift, 1 << shift - 1
    rest = significand & (1 << shift) - 1
    tie = {"half up": rest == half, "half down": np.zeros(x.shape, bool)}.get(fault, kept & 1 == 1)
    up = (rest > half) | ((rest == half) & tie)
    if fault == "no rounding":
        up = up & False
    if fault == "no sticky bit":
        up = (rest & half != 0) & (kept & 1 == 1)
    if fault == "magnitude up":
        up = (rest > 0) & (magnitude > 0)
    if fault == "subnormals not rounded":
        up &= ~subnormal
    if fault == "carry lost":
        kept = np.where(kept & 7 == 7, np.where(up, kept & 8, kept), kept + up)
    elif fault == "carry out of the subnormals lost":
        kept = np.where(subnormal & (kept == 7), kept, kept + up)
    else:
        kept = kept + up
    field = {"bias 8": 8, "bias 6": 6}.get(fault, 7)
    code = np.where(subnormal, kept, (exponent + field - 1 << 3) + kept)
    if fault == "subnormals flushed":
        code = np.where(code < 8, 0, code)
    limit = {"at most 240": 0x77, "at most 416": 0x7D, "480 for the largest": 0x7F}.get(fault, 0x7E)
    code = np.where(exponent > 8, limit, np.minimum(code, limit))
    if fault == "480 for the largest":
        code = np.where(exponent > 8, 0x7E, code)
    if fault == "448 from 384 on":
        code = np.where(magnitude >= 0x43C00000, 0x7E, code)
    if fault == "infinity a NaN":
        code = np.where(magnitude == 0x7F800000, 0x7F, code)
    if fault == "zero below 2^-9":
        code = np.where(magnitude < 0x3B000000, 0, code)
    if fault == "negative zero lost":
        sign = np.where(code == 0, 0, sign)
    if fault == "no sign":
        sign = sign * 0
    if fault == "two's complement":
        code, sign = np.where(sign != 0, -code & 0xFF, code), 0
    nan = {"NaN is 448": 0x7E, "NaN is 0": 0}.get(fault, 0x7F)
    if fault == "payload of NaN":
        nan = 0x78 | magnitude >> 20 & 7 | sign
    return np.where(is_nan, nan, code | sign).astype(np.uint8)


#: The faults of :func:`by_hand`, and the names that they must be given.
BY_HAND = {
    "input cut to bfloat16": "a missing sticky bit",
    "input rounded to bfloat16": "double rounding through bfloat16",
    "half up": "ties rounded away from zero",
    "half down": "ties rounded toward zero",
    "no rounding": "truncation",
    "no sticky bit": "a missing sticky bit",
    "magnitude up": "away from zero instead of nearest",
    "subnormals not rounded": "subnormals truncated",
    "carry lost": "carry into the exponent lost",
    "carry out of the subnormals lost": "carry from the subnormals lost",
    "bias 8": "exponent field off by one",
    "bias 6": "exponent field off by one",
    "subnormals flushed": "subnormals flushed to zero",
    "at most 240": "saturation at too small a value",
    "at most 416": "saturation at too small a value",
    "480 for the largest": "rounding beyond the largest value not clamped",
    "448 from 384 on": "saturation from too small a value on",
    "infinity a NaN": "infinity encoded as NaN",
    "zero below 2^-9": "zero up to too large a value",
    "negative zero lost": "-0 encoded as 0",
    "no sign": "sign lost",
    "two's complement": "negative numbers in two's complement",
    "NaN is 448": "NaN clamped to the largest value",
    "NaN is 0": "NaN encoded as zero",
    "payload of NaN": "NaN encoded by the upper bits of its payload",
}


def test_the_encoder_by_hand_is_right():
    testing.check_encoder(by_hand, E4M3FN)


@pytest.mark.parametrize("fault", BY_HAND)
def test_faults_of_others_are_named_by_all_three_instruments(fault):
    with pytest.raises(AssertionError) as caught:
        testing.check_encoder(lambda x: by_hand(x, fault), E4M3FN)
    assert str(caught.value).endswith(f"It looks like {BY_HAND[fault]}")
    vectors = make_vectors(E4M3FN, "nearest-saturating", "float32")
    codes = by_hand(vectors.inputs.view(np.float32), fault)
    assert check_results(results(vectors, codes)).cause == BY_HAND[fault]
    assert BY_HAND[fault] in causes_by_kit("codec/E4M3FN/nearest-saturating", codes)


@pytest.mark.parametrize("asked", ["up", "down"])
@np.errstate(all="ignore")
def test_directions_of_others(asked):
    """Rounding by the floor of a quotient, whatever the sign: both signs go the wrong way."""

    def of_magnitudes(x):
        other = {"up": encode(np.abs(x), E5M2, rounding="up")}
        other["down"] = encode(np.abs(x), E5M2, rounding="down")
        sign = np.where(np.signbit(x), np.uint8(0x80), np.uint8(0))
        return np.where(np.isnan(x), np.uint8(0x7F), other[asked] | sign)

    name = {
        "up": "up and down exchanged for negative numbers",
        "down": "toward zero instead of down",
    }
    with pytest.raises(AssertionError, match=f"It looks like {name[asked]}$"):
        testing.check_encoder(of_magnitudes, E5M2, rounding=asked)


@pytest.mark.parametrize("rounding", ROUNDINGS[:-1])
def test_check_encoder_takes_every_mode(rounding):
    for fmt, (saturate, how, overflow) in itertools.product((E4M3FN, E2M1), BEHAVIOURS):
        if how == rounding:
            testing.check_encoder(
                lambda x: encode(x, fmt, saturate, rounding=how, overflow=overflow),  # noqa: B023
                *(fmt, saturate),
                rounding=how,
                overflow=overflow,
            )


def test_check_encoder_takes_random_bits():
    words = np.random.default_rng(0).integers(0, 1 << 16, 1 << 19, dtype=np.uint16)
    how = {"rounding": "stochastic", "bit_count": 13}

    def right(x, bits):
        return encode(x, E5M2, random_bits=bits, **how)

    testing.check_encoder(right, E5M2, random_bits=words, **how)
    with pytest.raises(AssertionError, match="It looks like random bits inverted"):
        testing.check_encoder(lambda x, bits: right(x, ~bits), E5M2, random_bits=words, **how)
    with pytest.raises(ValueError, match="random_bits: expected at least"):
        testing.check_encoder(right, E5M2, random_bits=words[:9], **how)
    with pytest.raises(ValueError, match="random_bits: expected an array"):
        testing.check_encoder(right, E5M2, **how)
    with pytest.raises(ValueError, match="random_bits: expected given bits"):
        encoder_mistakes(E5M2, rounding="stochastic")


def test_what_the_encoder_refuses_has_no_mistakes():
    how = {"saturate": True, "rounding": "toward_zero", "overflow": "special"}
    x, codes = np.float32([1]), np.uint8([56])
    for call in (
        lambda: encode(x, E4M3FN, **how),
        lambda: encoder_mistakes(E4M3FN, **how),
        lambda: fitted_mistakes(E4M3FN, **how),
        lambda: explain_codes(x, codes, E4M3FN, **how),
    ):
        message = "^overflow: expected 'ieee' with saturate=True, found 'special'$"
        with pytest.raises(ValueError, match=message):
            call()


# Part of the explanation


def test_two_faults_at_once_are_explained_in_part():
    def both(x):
        codes = by_hand(x, "half up")
        return np.where(codes == 0x80, np.uint8(0), codes)

    vectors = make_vectors(E4M3FN, "nearest-saturating", "float32")
    x = vectors.inputs.view(np.float32)
    report = check_results(results(vectors, both(x)))
    assert report.cause == ""
    assert report.partial in ("-0 encoded as 0", "ties rounded away from zero")
    alone = by_hand(x, {"-0 encoded as 0": "negative zero lost"}.get(report.partial, "half up"))
    wrong = both(x) != vectors.codes
    assert report.explained == (wrong & (alone == both(x))).sum()
    assert report.contradicted == (~wrong & (alone != both(x))).sum()
    text = f"{report.partial} explains {report.explained} of {report.wrong} wrong cases"
    assert report.explanation().startswith(text)
    with pytest.raises(AssertionError, match=r"Most likely: .* explains \d+ of \d+ wrong cases"):
        testing.check_encoder(both, E4M3FN)


def test_noise_is_not_explained():
    vectors = make_vectors(E4M3FN, "nearest-saturating", "float32")
    noise = vectors.codes ^ (vectors.inputs % 7 == 0)
    report = check_results(results(vectors, noise))
    assert report.cause == ""
    assert report.explained < report.wrong / 2


def test_fitted_mistakes_have_no_answer_to_right_codes():
    x = make_vectors(E4M3FN, "nearest", "float32").inputs.view(np.float32)
    codes = encode(x, E4M3FN)
    assert [fit(x, codes) for _, fit in fitted_mistakes(E4M3FN)] == [None] * 3
    assert likely_mistake(x, codes, E4M3FN) == ""
    assert explain_codes(x, codes, E4M3FN).wrong == 0


# Decoding


@by_format
def test_every_mistake_of_decoders_is_named(fmt):
    codes = np.arange(fmt.values.size, dtype=np.uint8)
    vectors = make_vectors(fmt, DECODE, "float32")
    first, seen = {}, 0
    for name, decoder in decoder_mistakes(fmt):
        values = decoder(codes)
        if not differing_values(fmt.values, values).any():
            continue
        seen += 1
        key = np.where(np.isnan(values), np.nan, values).tobytes()
        first.setdefault(key, name)
        with np.errstate(all="ignore"):
            found = values.astype(np.float32)
        with pytest.raises(AssertionError, match=f"It looks like {first[key]}$"):
            testing.check_decoder(lambda _, values=values: values, fmt)
        if np.array_equal(found.astype(np.float64), values, equal_nan=True):
            report = check_results(results(vectors, found.view(np.uint32)))
            assert report.cause == first[key]
            if fmt in (E4M3FN, E5M2):
                assert first[key] in causes_by_kit(f"codec/{fmt}/values", found)
    assert seen > 8


def test_decoders_of_others():
    codes = np.arange(256, dtype=np.uint8)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    naive = sign * np.ldexp(1 + mantissa / 8, exponent.astype(int) - 7)  # 0 becomes 2^-7
    text = explain_values(codes, naive, E4M3FN).text()
    assert text.startswith("leading one added to subnormals explains 16 of 18 wrong cases")
    flushed = np.where(exponent == 0, sign * 0.0, E4M3FN.values)
    assert explain_values(codes, flushed, E4M3FN).cause == "subnormals flushed to zero"
    report = explain_values(codes, E4M3FN.values + 0.0, E4M3FN)
    assert report.wrong == 1
    assert report.cause == "-0 decoded as 0"
    half = make_vectors(E5M2, DECODE, "float16")
    no_subnormals = np.where(half.expected & 0x7C00 == 0, half.expected & 0x8000, half.expected)
    report = check_results(results(half, no_subnormals.astype(np.uint16)))
    assert report.cause == "subnormals flushed to zero"
