"""Comparing a candidate with a kit: the first difference, its size and its cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError, shown
from bert_numpy.kit.accumulation import Products, products_of
from bert_numpy.kit.candidate import as_candidate
from bert_numpy.kit.coverage import (
    Coverage,
    as_counts,
    coverage_of,
    missing_in_words,
    unseen_mistakes,
)
from bert_numpy.kit.diagnosis import Diagnosis, Partial, diagnose
from bert_numpy.kit.evaluation import bits_of, unlike
from bert_numpy.kit.manifest import LEVELS, PROFILES, Kit, Tensor, as_kit
from bert_numpy.kit.tolerance import accumulation_failures
from bert_numpy.progress import ProgressBar, no_bar
from npfp8.arguments import flag, integer, require_function, require_iterable, wrong_type
from npfp8.arguments import require as require_type
from npfp8.arrays import Array, Float64Array, IntArray
from npfp8.formats import FORMATS, FloatFormat
from npfp8.names import match

__all__ = [
    "PROFILES",
    "Coverage",
    "Difference",
    "Products",
    "Report",
    "counted",
    "differing_elements",
    "ulps",
    "verify",
]


@dataclass(frozen=True)
class Difference:
    """A tensor of a candidate that differs from the kit's.

    Attributes
    ----------
    name, level, operation : str
    elements, different : int
        The number of all elements, and of those that differ. All NaNs are equal.
    ulp : float or None
        The largest distance, in codes or in units of the last place of bfloat16
        or float32; -0 and +0 are one apart. None if a NaN is on one side.
    index : tuple of int
        The index of the first element that differs.
    expected, found : str
        The value and the bits there.
    sqnr : float or None
        Signal-to-noise ratio over the finite elements, in dB; None without noise.
    root : bool
        True if an error arises here: none of its sources differ, or it does not follow from the
        candidate's own.
    causes : tuple of str
        For a root: the known defects that reproduce the tensor to the last bit, beginning with
        those that explain most roots, and of these with those that need to be in its own operation
        alone. If there is none, those that reproduce it to within a library's error, which their
        names state. It is empty if the cause is unknown.
    partial : tuple of Partial
        For a root without a cause: the defects that explain most of the elements that differ.
    """

    name: str
    level: str
    operation: str
    elements: int
    different: int
    ulp: float | None
    index: tuple[int, ...]
    expected: str
    found: str
    sqnr: float | None
    root: bool = False
    causes: tuple[str, ...] = ()
    partial: tuple[Partial, ...] = ()


@dataclass(frozen=True, repr=False)
class Report:
    """The result of a comparison.

    Attributes
    ----------
    profile : str
    compared : tuple of str
        The tensors of the candidate, in the order of the data flow.
    missing : int
        The number of computed tensors of the kit that the candidate lacks.
    differences : tuple of Difference
        The differences in the order of the data flow.
    failures : mapping of str to str
        The tensors that the profile does not tolerate, each with the reason.
    products : tuple of Products
        The accumulators that computed the candidate's products, where these are not the kit's.
    coverage : tuple of Coverage
        The computed tensors that the candidate gives and lacks, by level and operation.
    required : tuple of str
        The levels that had to be given whole.
    unseen : mapping of str to tuple of str
        If nothing fails: for the operations ``encode``, ``quantize`` and ``round``, the known
        mistakes that would change no element of the tensors given.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit, verify
    >>> kit = open_kit()
    >>> values = kit.arrays["codec/E4M3FN/values"]
    >>> report = verify(kit, {"codec/E4M3FN/values": values})
    >>> report.passed, report.complete, report.compared
    (True, False, ('codec/E4M3FN/values',))
    """

    profile: str
    compared: tuple[str, ...]
    missing: int
    differences: tuple[Difference, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    products: tuple[Products, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    required: tuple[str, ...] = ()
    unseen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Report {self.text().splitlines()[0]}>"

    @property
    def passed(self) -> bool:
        """True if the profile tolerates all differences, and no required tensor is missing.

        This is also true of a candidate that gives only a part, and whose part is right: see
        :attr:`complete` and :attr:`verdict`.
        """
        return not self.failures and not self.lacking

    @property
    def complete(self) -> bool:
        """True if the candidate gives every computed tensor of the kit."""
        return not self.missing

    @property
    def lacking(self) -> tuple[str, ...]:
        """The computed tensors of the required levels that the candidate does not give."""
        return tuple(
            name for item in self.coverage if item.level in self.required for name in item.missing
        )

    @property
    def verdict(self) -> str:
        """The result in words.

        - "FAILED": a tensor is wrong, or a required one is missing.
        - "passed": all computed tensors are given and right.
        - "passed: codec, operator complete": so are all of the levels that were required.
        - "consistent as far as given": what is given is right, and something is not given.
        """
        if not self.passed:
            return "FAILED"
        if self.complete:
            return "passed"
        if self.required:
            return f"passed: {', '.join(self.required)} complete"
        return "consistent as far as given"

    @property
    def first(self) -> Difference | None:
        """The first tensor that differs, in the order of the data flow."""
        return self.differences[0] if self.differences else None

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit, verify
        >>> kit = open_kit()
        >>> values = kit.arrays["codec/E4M3FN/values"]
        >>> verify(kit, {"codec/E4M3FN/values": values}).as_json()["verdict"]
        'consistent as far as given'
        """
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "complete": self.complete,
            "profile": self.profile,
            "compared": len(self.compared),
            "missing": self.missing,
            "coverage": as_counts(self.coverage),
            "required": list(self.required),
            "lacking": list(self.lacking),
            "unseen": {operation: list(names) for operation, names in self.unseen.items()},
            "first": None if self.first is None else asdict(self.first),
            "failures": dict(self.failures),
            "products": [asdict(item) for item in self.products],
            "differences": [asdict(item) for item in self.differences],
        }

    def text(self) -> str:
        """Return the report as a few lines of text.

        Examples
        --------
        >>> from bert_numpy.kit import open_kit, verify
        >>> kit = open_kit()
        >>> values = kit.arrays["codec/E4M3FN/values"]
        >>> report = verify(kit, {"codec/E4M3FN/values": values}, require=["codec"])
        >>> report.text().split(":")[0]
        'FAILED (bit-exact)'
        """
        given = sum(len(item.given) for item in self.coverage)
        inputs = len(self.compared) - given
        head, _, levels = self.verdict.partition(": ")
        lines = [
            f"{head} ({self.profile}): {f'{levels}; ' if levels else ''}"
            f"{given:,} of {given + self.missing:,} computed tensors given, "
            + (f"{inputs} inputs given back, " if inputs else "")
            + f"{len(self.differences)} differ"
        ]
        lines += [item.text() for item in self.products]
        lines += self._roots_in_words()
        reasons = [(n, why) for n, why in self.failures.items() if self.profile != PROFILES[0]]
        lines += [f"failure: {name}: {why}" for name, why in reasons[:_SHOWN]]
        if lacking := self.lacking:
            names = ", ".join(lacking[:_SHOWN]) + (", ..." if lacking[_SHOWN:] else "")
            what = f"of {', '.join(self.required)}: {counted(len(lacking), 'tensor')}: {names}"
            lines += _listed("missing", [what])
        lines += _listed("not given", missing_in_words(self.coverage))
        mistakes = (f"{operation}: {', '.join(names)}" for operation, names in self.unseen.items())
        lines += _listed("would not show", mistakes)
        return "\n".join(map(shown, lines))

    def _roots_in_words(self) -> list[str]:
        """Describe the first places where something goes wrong, three lines each."""
        roots = [item for item in self.differences if item.root]
        lines = []
        for number, item in enumerate(roots[:_SHOWN]):
            distance = "a NaN on one side" if item.ulp is None else f"at most {ulps(item.ulp)}"
            lines += [
                f"{'first: ' if not number else 'also:  '}{item.name} ({item.operation}): "
                f"{item.different} of {item.elements} elements, {distance}",
                f"       at {list(item.index)}: expected {item.expected}, found {item.found}",
                f"       cause: {', or '.join(item.causes) or 'no known one'}",
                *(f"       part:  {part.text()}" for part in item.partial),
            ]
        if len(roots) > _SHOWN:
            lines.append(f"       and {len(roots) - _SHOWN} more")
        return lines


def counted(count: int, noun: str) -> str:
    """Count things in words: "1 tensor", "1,043 tensors"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def ulps(distance: float) -> str:
    """Write a distance in units of the last place as people do: "0.5 ulp", "1,582 ulp"."""
    return f"{distance:,.0f} ulp" if distance >= 10 else f"{distance:.3g} ulp"


def _listed(title: str, items: Iterable[str]) -> list[str]:
    """Lay out texts beside one title, wrapped within 100 columns."""
    lines = []
    for item in items:
        lines += wrap(
            item,
            98 - len(title),
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    pad = " " * (len(title) + 2)
    return [f"{pad if i else f'{title}: '}{line}" for i, line in enumerate(lines)]


#: The number of places that a text report shows.
_SHOWN = 5


def verify(
    kit: Kit | str | Path,
    candidate: Mapping[str, Any],
    profile: str = "bit-exact",
    *,
    min_sqnr: float = 20.0,
    max_flips: int = 0,
    require: Iterable[str] = (),
    complete: bool = False,
    progress_bar: ProgressBar | None = None,
) -> Report:
    """Compare a candidate's tensors with a kit's.

    Parameters
    ----------
    kit : Kit
    candidate : mapping of str to ndarray
        Tensors by the kit's names; some may be missing. The dtypes are those of
        :func:`bert_numpy.kit.candidate.as_candidate`.
    profile : {"bit-exact", "accumulate-order", "statistical"}
        The tolerance: nothing; float32 sums of products in any order, each
        tensor computed from the candidate's own tensors; or noise.
    min_sqnr : float
        For the profile "statistical": the least signal-to-noise ratio of a
        tensor, in dB.
    max_flips : int
        For the profile "statistical": the number of rows of ``logits`` whose largest
        element may be another one.
    require : iterable of str
        Levels of the kit ("codec", "operator", "layer", "model") that the candidate must give
        whole: a missing computed tensor is a failure.
    complete : bool
        True if every computed tensor of the kit is required.
    progress_bar : callable, optional
        A bar for the search for causes, which takes seconds, or longer for a large model.

    Returns
    -------
    Report

    Raises
    ------
    BertNumpyError
        If the profile or a required level is unknown, or a tensor of the candidate does not fit
        the kit, or all of them are the kit's inputs, which show nothing.

    Examples
    --------
    >>> from bert_numpy.kit import open_kit, verify
    >>> kit = open_kit()
    >>> values = kit.arrays["codec/E4M3FN/values"]
    >>> verify(kit, {"codec/E4M3FN/values": values}).verdict
    'consistent as far as given'
    >>> verify(kit, {"codec/E4M3FN/values": values}, require=["codec"]).verdict
    'FAILED'
    >>> verify(kit, {"codec/E4M3FN/values": values + 1}).first.name
    'codec/E4M3FN/values'
    """
    kit = as_kit(kit)
    require_type("candidate", candidate, Mapping, "a mapping of names to arrays")
    require_type("profile", profile, str, f"one of {', '.join(PROFILES)}")
    known = match(profile, PROFILES)
    if known is None:
        raise BertNumpyError(f"profile: expected one of {', '.join(PROFILES)}, found {profile!r}")
    profile = known
    if not isinstance(min_sqnr, Real):
        raise wrong_type("min_sqnr", "a number", min_sqnr)
    max_flips = integer("max_flips", max_flips)
    required = _required_levels(kit, require, flag("complete", complete))
    require_function("progress_bar", progress_bar, "a function or None", optional=True)
    found = as_candidate(candidate, kit, "candidate")
    coverage = coverage_of(kit, found)
    if not any(item.given for item in coverage):
        raise BertNumpyError(
            "candidate: expected a tensor that an operation computes, found only inputs of the kit"
        )
    differing = {
        name: mask for name, x in found.items() if (mask := differing_elements(kit, name, x)).any()
    }
    roots = [name for name in differing if _is_root(kit, name, found, differing)]
    with (progress_bar or no_bar)(len(roots), "causes") as advance:
        diagnoses = diagnose(kit, found, differing, roots, advance)
    products = products_of(kit, found, differing)
    differences = tuple(
        _difference(kit, name, found[name], mask, diagnoses.get(name))
        for name, mask in differing.items()
    )
    if profile == "bit-exact":
        failures = {item.name: "differs" for item in differences}
    elif profile == "accumulate-order":
        failures = accumulation_failures(kit, found)
    else:
        failures = _noise_failures(kit, found, differences, min_sqnr, max_flips)
        failures |= {item.name: "differs, where nothing is noise" for item in differences
                     if _has_no_noise(kit.tensors[item.name])}  # fmt: skip
    return Report(
        profile,
        tuple(found),
        sum(len(item.missing) for item in coverage),
        differences,
        failures,
        products,
        coverage,
        required,
        {} if failures else unseen_mistakes(kit, found),
    )


def _required_levels(kit: Kit, levels: Iterable[str], complete: bool) -> tuple[str, ...]:
    """Return the levels that are required, in their order; each must be a level of the kit."""
    require_iterable("require", levels, f"names of levels: {', '.join(LEVELS)}")
    own = {level for level, _ in kit.operations()}
    chosen = set(own) if complete else set()
    for level in levels:
        require_type("require", level, str, f"one of {', '.join(LEVELS)}")
        known = match(level, LEVELS)
        if known not in own:
            expected = ", ".join(name for name in LEVELS if name in own)
            raise BertNumpyError(
                f"require: expected a level of the kit: {expected}; found {level!r}"
            )
        chosen.add(known)
    return tuple(level for level in LEVELS if level in chosen)


def _has_no_noise(tensor: Tensor) -> bool:
    """Check for what no accumulation and no function makes noisy: inputs, codecs and layouts."""
    return tensor.operation == "given" or tensor.level == "codec" or tensor.kind == "bytes"


def differing_elements(kit: Kit, name: str, found: Array) -> npt.NDArray[np.bool_]:
    """Mark the elements in which a tensor differs from the kit's. All NaNs are equal."""
    return unlike(kit.tensors[name], kit.arrays[name], found)


# Where


def _is_root(
    kit: Kit, name: str, found: Mapping[str, Array], differing: Mapping[str, Array]
) -> bool:
    """Check that none of the nearest given sources of a tensor differs."""
    between = kit.sources([name], found.__contains__)
    nearest = (x for source in (name, *between) for x, _ in kit.tensors[source].inputs.values())
    return differing.keys().isdisjoint(nearest)


def _difference(
    kit: Kit,
    name: str,
    found: Array,
    mask: npt.NDArray[np.bool_],
    diagnosis: Diagnosis | None,
) -> Difference:
    tensor, expected = kit.tensors[name], kit.arrays[name]
    index = tuple(int(i) for i in np.argwhere(mask)[0]) if mask.ndim else ()
    return Difference(
        name,
        tensor.level,
        tensor.operation,
        found.size,
        int(mask.sum()),
        _distance(tensor, expected[mask], found[mask]),
        index,
        _shown(tensor, expected[index]),
        _shown(tensor, found[index]),
        _sqnr(tensor, expected, found),
        diagnosis is not None,
        () if diagnosis is None else diagnosis.causes,
        () if diagnosis is None else diagnosis.partial,
    )


def _shown(tensor: Tensor, x: Any) -> str:
    """Return a number and its bits as text."""
    if tensor.kind == "bfloat16":
        bits = int(bits_of(np.asarray(x))) if np.ndim(x) == 0 else 0
        return f"{float(x)!r} (0x{bits >> 16:04X}{f'{bits & 0xFFFF:04X}' if bits & 0xFFFF else ''})"
    if tensor.kind == "float32":
        return f"{float(x)!r} (0x{int(bits_of(np.asarray(x))):08X})"
    fmt = FORMATS.get(tensor.fmt)
    if isinstance(fmt, FloatFormat):
        return f"0x{int(x):02X} ({float(fmt.values[int(x)])!r})"
    return f"0x{int(x):02X}" if tensor.kind == "bytes" else str(int(x))


def _distance(tensor: Tensor, x: Array, y: Array) -> float | None:
    """Compute the largest distance in codes or units of the last place; None with a NaN."""
    fmt = FORMATS.get(tensor.fmt)
    if tensor.kind in ("bfloat16", "float32"):
        if np.isnan(x).any() or np.isnan(y).any():
            return None
        unit = 2.0**16 if tensor.kind == "bfloat16" else 1.0
        return float(np.abs(_rank(bits_of(x), 31) - _rank(bits_of(y), 31)).max() / unit)
    if isinstance(fmt, FloatFormat):
        if np.isnan(fmt.values[x]).any() or np.isnan(fmt.values[y]).any():
            return None
        bits = fmt.bits - 1 if fmt.signed else fmt.bits
        return float(np.abs(_rank(x, bits) - _rank(y, bits)).max())
    return float(np.abs(x.astype(np.int64) - y.astype(np.int64)).max())


def _rank(bits: Array, sign_bit: int) -> IntArray:
    """Convert bits of sign and magnitude to integers in the numbers' order; -0 becomes -1."""
    wide = bits.astype(np.int64)
    magnitude = wide & ((1 << sign_bit) - 1)
    return np.where(wide >> sign_bit & 1, -1 - magnitude, magnitude)


def _values(tensor: Tensor, x: Array) -> Float64Array:
    fmt = FORMATS.get(tensor.fmt)
    if isinstance(fmt, FloatFormat):
        return fmt.values[x]
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def _sqnr(tensor: Tensor, expected: Array, found: Array) -> float | None:
    x, y = _values(tensor, expected), _values(tensor, found)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    signal, noise = float(np.sum(x * x)), float(np.sum((x - y) ** 2))
    if noise == 0:
        return None
    return 10 * math.log10(signal / noise) if signal else -math.inf


# How much


def _noise_failures(
    kit: Kit,
    found: Mapping[str, Array],
    differences: tuple[Difference, ...],
    min_sqnr: float,
    max_flips: int,
) -> dict[str, str]:
    failures = {}
    for item in differences:
        x, y = (_values(kit.tensors[item.name], z[item.name]) for z in (kit.arrays, found))
        special = ~(np.isfinite(x) & np.isfinite(y))
        if (special & (x != y) & ~(np.isnan(x) & np.isnan(y))).any():
            failures[item.name] = "expected the same NaNs and infinities"
        elif item.sqnr is not None and item.sqnr < min_sqnr:
            failures[item.name] = f"expected {min_sqnr:g} dB or more, found {item.sqnr:.1f} dB"
    flips = {
        name: int((kit.arrays[name].argmax(axis=-1) != x.argmax(axis=-1)).sum())
        for name, x in found.items()
        if name.endswith("/logits") and x.size
    }
    if (total := sum(flips.values())) > max_flips:
        flipped = next(name for name, count in flips.items() if count)
        failures[flipped] = f"expected at most {max_flips} flips, found {total}"
    return failures
