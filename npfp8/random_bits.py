"""Random bits as kernels make them, for stochastic rounding that reproduces.

GPUs make random numbers by a counter-based generator: a block of words is a function of a counter
and a key, so that each element can have its own, whatever the order. The usual one is
Philox4x32-10 of Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*
(SC 2011). :func:`philox_words` counts as kernels do:

- Triton: ``tl.randint4x(seed, offset)`` with an offset of 32 bits is
  ``philox_words(seed, offset)``, ``tl.randint`` its first word. With an offset of 64 bits Triton
  takes Philox4x64 instead: ``numpy.random.Philox`` with the key ``(seed, 0)``, which makes the
  four words of counter ``c`` first if it is given the counter ``c - 1``.
- cuRAND: after ``curand_init(seed, subsequence, offset, &state)``, with an offset that is a
  multiple of 4, ``curand4`` is ``philox_words(seed, offset // 4, subsequence)``, and the next one
  has an offset of 4 more. PyTorch's kernels call it with the thread's number as ``subsequence``.
- PyTorch: ``at::philox_engine(seed, subsequence, offset)`` starts with
  ``philox_words(seed, offset, subsequence)``: its offset counts blocks, not words.
- FlashAttention's ``philox`` has 7 rounds.

:func:`cvt_rs_bits` says which of the bits of a word NVIDIA's ``cvt.rs`` adds to each element.
:func:`npfp8.encode` takes the bits: ``rounding="stochastic"``, ``random_bits`` and ``bit_count``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, choice, integer, wrong_array

__all__ = ["CVT_RS_BIT_COUNTS", "cvt_rs_bits", "philox4x32", "philox_words"]

UInt32Array = npt.NDArray[np.uint32]

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_INCREMENTS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

#: How many random bits count, by the destination type of ``cvt.rs``.
CVT_RS_BIT_COUNTS = {
    "f16x2": 13,
    "bf16x2": 16,
    "e4m3x4": 16,
    "e5m2x4": 16,
    "e3m2x4": 16,
    "e2m3x4": 16,
    "e2m1x4": 16,
}


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike, rounds: int = 10) -> UInt32Array:
    """Return the four words of each counter: Philox4x32, as Random123 defines it.

    Parameters
    ----------
    counter : array_like of uint32, (..., 4)
    key : array_like of uint32, (..., 2)
        The leading axes of both are broadcast.
    rounds : int
        Philox4x32-10, the usual one, has 10. At most 16, as in Random123.

    Returns
    -------
    ndarray of uint32, (..., 4)

    Raises
    ------
    TypeError
        If ``counter`` or ``key`` is not uint32, or ``rounds`` is not an integer.
    ValueError
        If the last axes are not of 4 and 2, the others cannot be broadcast, or
        ``rounds`` is not 1 to 16.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.random_bits import philox4x32
    >>> words = philox4x32(np.zeros(4, np.uint32), np.zeros(2, np.uint32))
    >>> [hex(word) for word in words.tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    counters, keys = (
        array_of(name, value, np.uint32) for name, value in (("counter", counter), ("key", key))
    )
    for name, words, width in (("counter", counters, 4), ("key", keys, 2)):
        if words.ndim == 0 or words.shape[-1] != width:
            raise ValueError(f"{name}: expected shape (..., {width}), found {words.shape}")
    if not 1 <= (rounds := integer("rounds", rounds)) <= 16:
        raise ValueError(f"rounds: expected 1 to 16, found {rounds}")
    try:
        shape = np.broadcast_shapes(counters.shape[:-1], keys.shape[:-1])
    except ValueError:
        raise ValueError(
            f"key: expected axes that broadcast with counter's {counters.shape}, found {keys.shape}"
        ) from None
    # Words of 32 bits in 64: the products are whole.
    a, b, c, d = np.moveaxis(np.broadcast_to(counters, (*shape, 4)), -1, 0).astype(np.uint64)
    key_a, key_b = np.moveaxis(np.broadcast_to(keys, (*shape, 2)), -1, 0).astype(np.uint64)
    for _ in range(rounds):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (
            second >> _32 ^ b ^ key_a,
            second & _LOW,
            first >> _32 ^ d ^ key_b,
            first & _LOW,
        )
        key_a, key_b = key_a + _INCREMENTS[0] & _LOW, key_b + _INCREMENTS[1] & _LOW
    return np.stack([a, b, c, d], axis=-1).astype(np.uint32)


def philox_words(
    seed: int, offset: npt.ArrayLike, subsequence: npt.ArrayLike = 0, rounds: int = 10
) -> UInt32Array:
    """Return the four words of Philox4x32 for each offset, as kernels count.

    The key is the seed, and the counter the offset followed by the subsequence, each in two
    words, the lower one first. The module's text says what that is in Triton, cuRAND and PyTorch.

    Parameters
    ----------
    seed : int
        Of 64 bits: from ``-2^63`` to ``2^64 - 1``.
    offset, subsequence : array_like of integers
        Not negative; broadcast with each other.
    rounds : int

    Returns
    -------
    ndarray of uint32, (..., 4)

    Raises
    ------
    TypeError
        If an argument is not of integers.
    ValueError
        If a number is negative or beyond 64 bits, the shapes cannot be broadcast, or ``rounds``
        is not 1 to 16.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, encode
    >>> from npfp8.random_bits import philox_words
    >>> words = philox_words(1234, np.arange(2))  # tl.randint4x(1234, tl.arange(0, 2))
    >>> words.shape, words.dtype
    ((2, 4), dtype('uint32'))
    >>> x = np.full((2, 4), 1.0625, np.float32)  # half of them up
    >>> encode(x, E4M3FN, rounding="stochastic", random_bits=words, bit_count=16).tolist()
    [[57, 57, 57, 56], [57, 56, 56, 57]]
    """
    number = integer("seed", seed)
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"seed: expected an integer of 64 bits, found {number}")
    parts = [_words(name, x) for name, x in (("offset", offset), ("subsequence", subsequence))]
    try:
        shape = np.broadcast_shapes(*(part.shape for part in parts))
    except ValueError:
        raise ValueError(
            f"subsequence: expected a shape that broadcasts with offset's {parts[0].shape}, found "
            f"{parts[1].shape}"
        ) from None
    counter = np.empty((*shape, 4), np.uint32)
    for place, part in enumerate(parts):
        counter[..., 2 * place] = part & _LOW
        counter[..., 2 * place + 1] = part >> _32
    key = np.array([number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF], np.uint32)
    return philox4x32(counter, key, rounds)


def cvt_rs_bits(words: npt.ArrayLike, destination: str) -> npt.NDArray[np.uint16]:
    """Return the random bits that PTX's ``cvt.rs`` adds to each element, of its operand ``rbits``.

    ``cvt.rs.satfinite.e4m3x4.f32 d, {a, b, e, f}, rbits`` rounds four float32 numbers with the
    bits of one word. The rounding is that of :func:`npfp8.encode` with these bits,
    ``bit_count=CVT_RS_BIT_COUNTS[destination]`` and saturation. Of the codes, ``a`` has the highest
    place in ``d``, and ``f`` the lowest, which is the first byte in memory.

    The PTX ISA (9.0, ``cvt``) says which half of the word each pair of operands takes, not how
    the two share its 16 bits. They are taken here as implementations have measured it on a
    B200: the second one (``b``, ``f``) as they are, the first one (``a``, ``e``) in reverse order
    (FlashInfer's ``include/flashinfer/mamba/conversion.cuh``, for e4m3x4). It was not measured
    for this package: only Blackwell (sm_100a, sm_103a) has the instruction.

    Parameters
    ----------
    words : array_like of uint32
    destination : str
        A type of :data:`CVT_RS_BIT_COUNTS`:

        - "e4m3x4", "e5m2x4", "e3m2x4", "e2m3x4": ``a`` and ``b`` take the upper 16 bits, ``e`` and
          ``f`` the lower ones;
        - "e2m1x4": ``a`` and ``b`` take the upper byte of both halves, ``e`` and ``f`` the lower
          byte of both, the upper half's first;
        - "bf16x2": ``a`` takes the upper 16 bits, ``b`` the lower ones;
        - "f16x2": of these, the lower 13 bits count.

    Returns
    -------
    ndarray of uint16, (..., 4) or (..., 2)
        For each word the bits of ``a``, ``b``, and ``e`` and ``f`` if there are any.

    Raises
    ------
    TypeError
        If ``words`` is not uint32, or ``destination`` is not a str.
    ValueError
        If the destination is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import encode
    >>> from npfp8.random_bits import CVT_RS_BIT_COUNTS, cvt_rs_bits
    >>> bits = cvt_rs_bits(np.uint32(0x8000FFF0), "e4m3x4")
    >>> [hex(one) for one in bits.tolist()]
    ['0x1', '0x8000', '0xfff', '0xfff0']
    >>> x = np.float32([1.0625, 1.0625, 1.0625, 1.0625])
    >>> count = CVT_RS_BIT_COUNTS["e4m3x4"]
    >>> encode(x, "E4M3FN", rounding="stochastic", random_bits=bits, bit_count=count)
    array([56, 57, 56, 57], dtype=uint8)
    """
    rbits = array_of("words", words, np.uint32)
    destination = choice("destination", destination, CVT_RS_BIT_COUNTS)
    upper, lower = rbits >> np.uint32(16), rbits & np.uint32(0xFFFF)
    if destination.endswith("x2"):
        mask = np.uint32((1 << CVT_RS_BIT_COUNTS[destination]) - 1)
        return np.stack([upper & mask, lower & mask], axis=-1).astype(np.uint16)
    if destination == "e2m1x4":
        high, low = np.uint32(0xFF00), np.uint32(0xFF)
        upper, lower = (
            upper & high | lower >> np.uint32(8),
            (upper & low) << np.uint32(8) | (lower & low),
        )
    pairs = np.stack([upper, lower], axis=-1).astype(np.uint16)
    return np.stack([_reversed(pairs), pairs], axis=-1).reshape(*rbits.shape, 4)


def _words(name: str, value: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return non-negative integers as uint64."""
    numbers = array_of(name, value)
    if numbers.dtype.kind not in "iu":
        raise wrong_array(name, "integers of 64 bits", numbers, value)
    if numbers.size and numbers.min() < 0:
        raise ValueError(f"{name}: expected integers of at least 0, found {numbers.min()}")
    return numbers.astype(np.uint64)


def _reversed(x: npt.NDArray[np.uint16]) -> npt.NDArray[Any]:
    """Return words of 16 bits with their bits in reverse order."""
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        by, kept = np.uint16(shift), np.uint16(mask)
        x = x >> by & kept | (x & kept) << by
    return x
