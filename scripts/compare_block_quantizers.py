"""Regenerate docs/where-they-differ.md: how the rules of block formats differ, and where.

    python scripts/compare_block_quantizers.py [--check] [--formats NAME ...]
    python scripts/compare_block_quantizers.py --peers

The tables of the page are computed by npfp8's rules, on numbers that are the same on every
machine; its introduction is written by hand. ``--check`` computes the tables, or those of some
formats, and exits with 1 if the file says something else. ``--peers`` runs the parties' own code
on the same numbers, as far as it is installed, and records in docs/data/block-peers.json which
of it agreed bit for bit; the page quotes that file. microxcaling is not on PyPI: MICROXCALING
names a checkout of its repository.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import npfp8
from npfp8 import BLOCK_FORMATS, NVFP4, POWER_RULES, RATIO_RULES, BlockFormat
from npfp8.block_outcomes import Outcome, given_as, outcome_by_rule, outcome_of
from npfp8.blocks.formats import with_rule
from npfp8.blocks.inputs import SOURCES, hard_inputs, normal_numbers, to_source
from npfp8.blocks.quantize import block_scales, quantize_blocks
from npfp8.files import replaced_file
from npfp8.formats import FloatFormat

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "where-they-differ.md"
RECORD = ROOT / "docs" / "data" / "block-peers.json"
SIZE = 1024

#: The line of the page above which the script leaves everything as it is.
MARK = "<!-- scripts/compare_block_quantizers.py writes what follows. -->"

#: The types of numbers, in the order of the page.
TYPES = ("float32", "bfloat16", "float16")
assert set(TYPES) == set(SOURCES)

Array = Any


# The parties' own code, as a user would wrap it


class Peer(NamedTuple):
    """A party's own code.

    ``make(fmt, option)`` returns a function for :func:`npfp8.testing.check_block_quantizer`.
    """

    package: str
    formats: tuple[str, ...]
    make: Callable[[BlockFormat, str], Callable[[Array], Any]]
    option: str = ""
    sources: tuple[str, ...] = ("float32", "bfloat16")

    def quantizer(self, fmt: BlockFormat) -> Callable[[Array], Any]:
        """Return the party's quantizer; raise ImportError if it is not installed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.make(fmt, self.option)

    def version(self) -> str:
        """Return the version of the package, or the commit of the checkout."""
        if self.package != "microxcaling":
            return importlib.metadata.version(self.package)
        command = ["git", "-C", os.environ["MICROXCALING"], "rev-parse", "--short=10", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def as_torch(x: Array) -> Any:
    import torch  # noqa: PLC0415

    if x.dtype.itemsize == 2 and x.dtype != np.float16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def as_bytes(x: Any) -> Array:
    import torch  # noqa: PLC0415

    return x.contiguous().view(torch.uint8).numpy()


def torchao(fmt: BlockFormat, mode: str) -> Callable[[Array], Any]:
    import torch  # noqa: PLC0415

    package = "torchao.prototype.mx_formats"
    if fmt == NVFP4:
        nvfp4 = importlib.import_module(f"{package}.nvfp4_tensor")

        def two_level(x: Array) -> Any:
            numbers = as_torch(x)
            p = nvfp4.per_tensor_amax_to_scale(numbers.abs().max())
            found = nvfp4.NVFP4Tensor.to_nvfp4(numbers, fmt.block, per_tensor_scale=p)
            return as_bytes(found.qdata), as_bytes(found.scale), p.numpy()

        return two_level
    to_mx = importlib.import_module(f"{package}.mx_tensor").to_mx
    modes = importlib.import_module(f"{package}.config").ScaleCalculationMode
    element = {
        "E4M3FN": torch.float8_e4m3fn,
        "E5M2": torch.float8_e5m2,
        "E2M3": "fp6_e2m3",
        "E3M2": "fp6_e3m2",
        "E2M1": torch.float4_e2m1fn_x2,
    }[str(fmt.element)]

    def quantizer(x: Array) -> Any:
        scale, codes = to_mx(as_torch(x), element, fmt.block, modes[mode])
        return as_bytes(codes), as_bytes(scale)

    return quantizer


def compressed_tensors(fmt: BlockFormat, option: str) -> Callable[[Array], Any]:
    import torch  # noqa: PLC0415

    quantization = importlib.import_module("compressed_tensors.quantization")
    utils = importlib.import_module("compressed_tensors.quantization.utils")
    bits = fmt.element.bits  # type: ignore[union-attr]
    name = "nvfp4" if fmt == NVFP4 else f"mxfp{bits}"
    base = importlib.import_module(f"compressed_tensors.compressors.{name}.base")
    kind = (
        "NVFP4Packed" if fmt == NVFP4 else f"MXFP{bits}{'Quantization' if bits == 8 else 'Packed'}"
    )
    compressor = getattr(base, f"{kind}Compressor")
    scale_dtype = torch.float8_e4m3fn if fmt == NVFP4 else torch.uint8
    arguments = quantization.QuantizationArgs(
        num_bits=bits,
        type="float",
        strategy="tensor_group" if fmt == NVFP4 else "group",
        group_size=fmt.block,
        symmetric=True,
        scale_dtype=scale_dtype,
        **({} if fmt == NVFP4 else {"zp_dtype": torch.uint8}),
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)

    def quantizer(x: Array) -> Any:
        weight = as_torch(x)
        state = {"weight": weight}
        number = None
        if fmt == NVFP4:
            number = utils.generate_gparam(weight.min(), weight.max())
            scale, _ = utils.compute_dynamic_scales_and_zp(
                weight, arguments, None, global_scale=number
            )
            state["weight_global_scale"] = number
        else:
            groups = weight.reshape(len(weight), -1, fmt.block)
            scale, _ = utils.calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
        packed = compressor.compress({**state, "weight_scale": scale}, scheme)
        codes = packed["weight" if bits == 8 else "weight_packed"]
        found = as_bytes(codes), as_bytes(packed["weight_scale"])
        return found if number is None else (*found, number.numpy())

    return quantizer


def modelopt(fmt: BlockFormat, option: str) -> Callable[[Array], Any]:
    package = "modelopt.torch.quantization.qtensor"
    name = fmt.name.partition("_")[0]
    cls = getattr(importlib.import_module(f"{package}.{name.lower()}_tensor"), f"{name}QTensor")

    def quantizer(x: Array) -> Any:
        numbers = as_torch(x)
        if fmt == NVFP4:
            tensor, scale, number = cls.quantize(numbers, fmt.block)
            return as_bytes(tensor._quantized_data), as_bytes(scale), number.numpy()
        # Its MXFP4 has the blocks of all rows in one list.
        found = cls.quantize(numbers, fmt.block) if name == "MXFP4" else cls.quantize(numbers)
        tensor, scale = found
        codes = as_bytes(tensor._quantized_data).reshape(len(x), -1)
        return codes, scale.numpy().reshape(len(x), -1)

    return quantizer


def coded(run: Callable[[Array], Array], x: Array, scales: Array, fmt: BlockFormat) -> Array:
    """Return the codes of a party that returns numbers: code values times scales.

    A number beyond the range is an infinity; there the code is that of the block times 2^-16.
    """
    numbers = run(x).astype(np.float64)
    lost = np.isinf(numbers)
    if lost.any():
        smaller = run((x.astype(np.float32) * np.float32(2.0**-16)).astype(x.dtype))
        numbers = np.where(lost, smaller.astype(np.float64) * 2.0**16, numbers)
    multiples = numbers / scales.astype(np.float64).repeat(fmt.block, axis=1)
    return npfp8.encode(np.where(np.isnan(numbers), 0, multiples), fmt.element)


def microxcaling(fmt: BlockFormat, rounding: str) -> Callable[[Array], Any]:
    checkout = os.environ.get("MICROXCALING")
    if not checkout:
        raise ImportError("microxcaling is not on PyPI: MICROXCALING does not name a checkout")
    sys.path.insert(0, checkout)
    try:
        mx = importlib.import_module("mx.mx_ops")
    finally:
        sys.path.remove(checkout)
    element = fmt.element
    name = "int8"
    if isinstance(element, FloatFormat):
        name = f"fp{element.bits}_{str(element)[:4].lower()}"
    emax = int(np.frexp(element.max)[1]) - 1

    def run(x: Array) -> Array:
        how = {"axes": [-1], "block_size": fmt.block, "round": rounding}
        return mx._quantize_mx(as_torch(x), 8, name, **how).float().numpy()

    def quantizer(x: Array) -> Any:
        """Return codes and scales of its numbers, by the shared exponents that it computes."""
        numbers = as_torch(x)
        groups = numbers.reshape(len(x), -1, fmt.block)
        exponents = mx._shared_exponents(groups, axes=[-1], ebits=0).squeeze(-1) - emax
        exponents = np.maximum(exponents.float().numpy(), -127)  # of 128, all become NaN
        codes = coded(run, x, np.ldexp(1.0, exponents.astype(int)), fmt)
        return codes, (exponents + 127).astype(np.uint8)

    return quantizer


def quark(fmt: BlockFormat, mode: str) -> Callable[[Array], Any]:
    import torch  # noqa: PLC0415

    kernels = importlib.import_module("quark.torch.kernel.hw_emulation.hw_emulation_interface")
    even_round = importlib.import_module("quark.torch.quantization.utils").even_round
    to_e8m0 = importlib.import_module("quark.torch.utils.numerics").to_e8m0_uint8
    element = fmt.element
    assert isinstance(element, FloatFormat)
    name = "fp4" if element.bits == 4 else f"fp{element.bits}_{str(element)[:4].lower()}"
    emax = int(np.frexp(element.max)[1]) - 1

    def run(x: Array) -> Array:
        how = {"mx_element_dtype": name}
        return kernels.fake_quantize_mx(as_torch(x), -1, fmt.block, mode, **how).float().numpy()

    def quantizer(x: Array) -> Any:
        """Return the codes of its numbers, and the scales as its observer computes them."""
        numbers = as_torch(x)
        amax = numbers.reshape(len(x), -1, fmt.block).abs().amax(-1)
        if mode == "even":
            scale = even_round(amax, name)
        else:
            scale = torch.pow(2, getattr(torch, mode)(torch.log2(amax)) - emax)
        scale = scale.masked_fill(scale == 0, torch.finfo(torch.float32).eps).float()
        return coded(run, x, scale.numpy(), fmt), to_e8m0(scale).numpy()

    return quantizer


def gfloat(fmt: BlockFormat, option: str) -> Callable[[Array], Any]:
    block = importlib.import_module("gfloat.block")
    formats = importlib.import_module("gfloat.formats")
    element = fmt.element
    assert isinstance(element, FloatFormat)
    info = getattr(formats, f"format_info_mxfp{element.bits}_{str(element)[:4].lower()}")

    def quantizer(x: Array) -> Any:
        found = []
        for one in x.reshape(-1, fmt.block):
            with np.errstate(all="ignore"):
                scale = block.compute_scale_amax(info.etype.emax, one)
                found.append(list(block.encode_block(info, scale, one / scale)))
        both = np.array(found, np.uint8)
        return both[:, 1:].reshape(x.shape), both[:, 0].reshape(len(x), -1)

    return quantizer


_FLOATS = ("MXFP8_E4M3", "MXFP8_E5M2", "MXFP6_E3M2", "MXFP6_E2M3", "MXFP4")
_HALF = TYPES

#: The parties whose code runs on a CPU, by the names of their rules.
PEERS = {
    "torchao": Peer("torchao", (*_FLOATS, "NVFP4"), torchao, "FLOOR"),
    "torchao-rceil": Peer("torchao", _FLOATS, torchao, "RCEIL"),
    "torchao-ceil": Peer("torchao", _FLOATS, torchao, "CEIL"),
    "torchao-even": Peer("torchao", _FLOATS, torchao, "EVEN"),
    "compressed-tensors": Peer(
        "compressed-tensors",
        ("MXFP8_E4M3", "MXFP6_E2M3", "MXFP4", "NVFP4"),
        compressed_tensors,
        sources=_HALF,
    ),
    "modelopt": Peer("nvidia-modelopt", ("MXFP8_E4M3", "MXFP4", "NVFP4"), modelopt, sources=_HALF),
    "microxcaling": Peer("microxcaling", (*_FLOATS, "MXINT8"), microxcaling, "nearest"),
    "microxcaling-even": Peer("microxcaling", (*_FLOATS, "MXINT8"), microxcaling, "even"),
    "microxcaling-floor": Peer("microxcaling", (*_FLOATS, "MXINT8"), microxcaling, "floor"),
    "quark": Peer("amd-quark", _FLOATS, quark, "even"),
    "quark-floor": Peer("amd-quark", _FLOATS, quark, "floor"),
    "quark-ceil": Peer("amd-quark", _FLOATS, quark, "ceil"),
    "gfloat": Peer("gfloat", _FLOATS, gfloat, sources=("float32",)),
}


def run_peers() -> list[dict[str, Any]]:
    """Run all parties' code that is installed on the hard inputs and on normal numbers."""
    from npfp8.testing import check_block_quantizer  # noqa: PLC0415 (needs hypothesis)

    rows = []
    for rule, peer in PEERS.items():
        for name in peer.formats:
            fmt = BLOCK_FORMATS[name]
            try:
                quantizer, version = peer.quantizer(fmt), peer.version()
            except (ImportError, LookupError) as error:
                print(f"{rule}, {name}: {error}", file=sys.stderr)
                continue
            for source in peer.sources:
                report = check_block_quantizer(quantizer, fmt, source=source)
                agreed = rule in report.follows
                if not agreed:
                    print(report, file=sys.stderr)
                differing = 0
                if rule != "gfloat":  # it takes a minute for so many blocks
                    differing = count_differing(quantizer, fmt, rule, source)
                rows.append(
                    {
                        "rule": rule,
                        "package": peer.package,
                        "version": version,
                        "format": name,
                        "source": source,
                        "agrees": agreed and not differing,
                        "blocks": report.blocks + (0 if rule == "gfloat" else SIZE**2 // fmt.block),
                    }
                )
                print(rule, version, name, source, agreed, differing, file=sys.stderr)
    return rows


def count_differing(
    quantizer: Callable[[Array], Any], fmt: BlockFormat, rule: str, source: str
) -> int:
    """Return in how many of all bytes the party differs from its rule on normal numbers."""
    x = normal_matrix(source)
    found = outcome_of(quantizer(given_as(x, source)), x, fmt)
    mine = outcome_by_rule(x, with_rule(fmt, rule), source)
    return int((found.scales != mine.scales).sum() + (found.codes != mine.codes).sum())


# What the rules make of numbers


#: The number of tensors of the table about NVFP4.
TENSORS = 32


def normal_matrix(source: str) -> Array:
    """Return the page's random numbers: normal, with the standard deviation 0.02."""
    return to_source(normal_numbers(SIZE * SIZE).reshape(SIZE, SIZE) * 0.02, source)


def rules_of(fmt: BlockFormat) -> dict[str, Any]:
    return POWER_RULES if fmt.powers_of_two else RATIO_RULES


def base_of(fmt: BlockFormat) -> str:
    """Return the rule that others are compared with."""
    return "floor" if fmt.powers_of_two else "te"


def every_rule(tensors: Iterable[Array], fmt: BlockFormat, source: str) -> dict[str, Outcome]:
    """Return what each rule that takes the format and the type makes of tensors, stacked."""
    found = {}
    tensors = list(tensors)
    for rule in rules_of(fmt):
        try:
            parts = [outcome_by_rule(x, with_rule(fmt, rule), source) for x in tensors]
        except ValueError:
            continue
        codes, scales = (np.concatenate([part[i] for part in parts]) for i in range(2))
        found[rule] = Outcome(codes, scales, None)
    return found


def classes(found: dict[str, Outcome]) -> list[tuple[list[str], Outcome]]:
    """Return the rules that gave the same bytes together."""
    groups: dict[bytes, tuple[list[str], Outcome]] = {}
    for rule, made in found.items():
        key = made.scales.tobytes() + made.codes.tobytes()
        groups.setdefault(key, ([], made))[0].append(rule)
    return list(groups.values())


def percent(differs: Array) -> str:
    """Return a share in percent; a share that is not 0 is never written as 0."""
    count, size = int(np.count_nonzero(differs)), differs.size
    if not count:
        return "0"
    share = 100 * count / size
    return f"{share:.2f}" if share >= 0.01 else f"{share:.4f}" if share >= 0.0001 else "<.0001"


def table(head: list[str], rows: Iterable[list[str]], right: int = 99) -> Iterator[str]:
    """Yield the lines of a table; columns from ``right`` on are numbers."""
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---:' if i >= right else '---' for i in range(len(head)))} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def letters(count: int) -> list[str]:
    return [chr(ord("A") + i) for i in range(count)]


#: A page of 1280 pixels has room for nine or ten columns of percentages, whatever the font.
COLUMNS = 8


def matrix(found: dict[str, Outcome]) -> Iterator[str]:
    """Yield the table of all pairs: scales above the diagonal, codes below.

    A table too wide for a page is cut into several, with all the rows in each.
    """
    groups = classes(found)
    names = letters(len(groups))
    rows = []
    for i, (rules, one) in enumerate(groups):
        cells = []
        for j, (_, other) in enumerate(groups):
            if i == j:
                cells.append("")
            elif i < j:
                cells.append(percent(one.scales != other.scales))
            else:
                cells.append(f"*{percent(one.codes != other.codes)}*")
        rows.append([f"**{names[i]}** " + ", ".join(f"`{rule}`" for rule in rules), *cells])
    for i in range(0, len(names), COLUMNS):
        part = slice(i + 1, i + 1 + COLUMNS)
        yield from table(
            ["rules", *names[i : i + COLUMNS]], ([row[0], *row[part]] for row in rows), 1
        )


#: Why blocks and elements differ, in the order in which it is decided.
CAUSES = {
    "zero": "the scale of a block of zeros",
    "end": "the scale, where that of one rule is at an end of its range",
    "scale": "the scale, elsewhere",
    "sign": "the sign of an element that is zero",
    "end codes": "an element under the same scale, at an end of the scales' range",
    "tie": "an element under the same scale, on a tie",
    "element": "any other element under the same scale",
}


def causes(x: Array, base: Outcome, other: Outcome, fmt: BlockFormat, exact: Array) -> list[str]:
    """Count why a rule differs from another: shares of blocks, then of elements, in percent."""
    zero = np.abs(x).reshape(*base.scales.shape, fmt.block).max(-1) == 0
    scales = base.scales != other.scales
    low, high = (1, 254) if fmt.powers_of_two else (8, 126)
    ends = (np.minimum(base.scales, other.scales) <= low) | (
        np.maximum(base.scales, other.scales) >= high
    )

    def spread(blocks: Array) -> Array:
        return blocks.repeat(fmt.block, axis=1)

    codes = (base.codes != other.codes) & ~spread(scales)
    sign = getattr(fmt.element, "sign_bit", 0)
    magnitudes = (base.codes | sign) if sign else base.codes
    signs = codes & ((base.codes & ~np.uint8(sign)) == 0) & ((other.codes | sign) == magnitudes)
    rest = codes & ~signs
    at_end = rest & spread(ends)
    rest &= ~at_end
    ties = rest & exact
    found = {
        "zero": scales & zero,
        "end": scales & ~zero & ends,
        "scale": scales & ~zero & ~ends,
        "sign": signs,
        "end codes": at_end,
        "tie": ties,
        "element": rest & ~ties,
    }
    assert list(found) == list(CAUSES)
    return [percent(part) for part in found.values()]


def on_ties(x: Array, base: Outcome, fmt: BlockFormat, numbers: Array | None) -> Array:
    """Return where a number over its scale, as the base rule has it, is on a tie of elements."""
    scale = block_scales(base.scales, None, with_rule(fmt, base_of(fmt)))
    scale = scale.astype(np.float64)
    if numbers is not None:
        scale = scale * numbers
    values = np.unique(np.abs(fmt.element.values[np.isfinite(fmt.element.values)]))
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float64)
    with np.errstate(all="ignore"):
        multiples = np.abs(x.astype(np.float64) / scale.repeat(fmt.block, axis=1))
    if numbers is not None:  # the tensor's number is rounded: beside a tie counts as on it
        places = np.searchsorted(middle, multiples).clip(0, middle.size - 1)
        near = np.minimum(
            np.abs(multiples - middle[places]),
            np.abs(multiples - middle[np.maximum(places - 1, 0)]),
        )
        return near <= multiples * 2.0**-20
    return np.isin(multiples, middle)


#: What sets a rule apart from the plain rule, in words. Rules of real arithmetic need none.
REASONS = {
    "torchao": "The factor of scale 0x00 is 2^126, not 2^127: elements of tiny blocks are halved.",
    "torchao-rceil": "The scale is a float32 logarithm's ceiling, and beside a power of two the "
    "logarithm is that of the power. A block of scale 0x00 is not scaled.",
    "torchao-ceil": "The factor of scale 0x00 is 2^126, as with `torchao`.",
    "torchao-even": "The factor of scale 0x00 is 2^126, as with `torchao`.",
    "compressed-tensors": "The threshold of E2M1 is used for E4M3 too. FP4 has no -0. The scale is "
    "a number of the input's type: in float16 it ends at 2^-24.",
    "microxcaling": "Ties go away from zero. Logarithms and sums are of the input's type: of 8 "
    "bits in bfloat16, so that a block up to a power of two counts as the power. Zeros are "
    "unsigned.",
    "microxcaling-even": "As `microxcaling`, with ties to even: only logarithms and zeros differ.",
    "microxcaling-floor": "As `microxcaling`, with elements cut toward zero.",
    "modelopt": "The scale is a float32 logarithm's ceiling. FP4 has ties toward zero, and every "
    "zero is -0 (0x8).",
    "quark": "The scale's byte is at least 0x01. FP4 and FP6 have no -0.",
    "quark-floor": "Logarithms are of the input's type. A scale of 0 becomes 2^-23 (0x68). FP4 and "
    "FP6 have no -0.",
    "quark-ceil": "As `quark-floor`, with the ceiling.",
    "vllm": "FP4: a block whose scale is 0x00 becomes zeros. E4M3: the scale takes no account of "
    "the largest element 448, so that seven binades of E4M3 stay unused.",
    "te": "A block of scale 0x00 is not scaled.",
    "triton": "A block of scale 0x00 becomes zeros.",
    "triton-floor": "A block of scale 0x00 becomes zeros.",
    "gfloat": "The scale is a float32 logarithm's floor: a block just below a power of two counts "
    "as the power.",
}
DIALECT_REASONS = {
    "exact": "The tensor's number, the scale and the element are each rounded once. All others "
    "round more often, and fall on the other side of a tie or of a threshold at times.",
    "te": "S = 2688 / g is rounded, then S · (1/6), then the product with b; so is the factor of "
    "elements. A negative number that rounds to zero is -0, while -0 itself is +0.",
    "modelopt": "Elements are divided, not multiplied. A scale that rounds to 0 is 2^-9, that of a "
    "zero block 1.",
    "torchao": "A scale is at least 2^-6: small blocks lose bits, but no block is lost.",
    "compressed-tensors": "b / 6 and the tensor's number are rounded to the type of the numbers, "
    "so that scales of bfloat16 numbers differ. A scale of 0 becomes 2^-3.",
    "quark": "Elements are divided. A zero is replaced by 2^-23 in each step. No code is -0.",
    "vllm": "Reciprocals take and give subnormal numbers as 0. Zeros keep their sign.",
}


def reason(fmt: BlockFormat, rule: str) -> str:
    return REASONS.get(rule, "") if fmt.powers_of_two else DIALECT_REASONS[rule]


def plain(text: str) -> str:
    """Return a text that Markdown does not take for markup."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


# The sections of the page


def section(fmt: BlockFormat) -> Iterator[str]:
    """Yield the lines about a format."""
    base = base_of(fmt)
    yield f"## {fmt.name}"
    yield ""
    for source in TYPES:
        normal = every_rule([normal_matrix(source)], fmt, source)
        refused = [rule for rule in rules_of(fmt) if rule not in normal]
        hard = hard_inputs(with_rule(fmt, next(iter(rules_of(fmt)))), source)
        tensors = [x for name, x in hard.items() if not name.startswith("normal")]
        found = every_rule(tensors, fmt, source)
        yield f"### {fmt.name}, {source} input"
        yield ""
        yield "Normal numbers, percent of scales (above the diagonal) and *codes* that differ:"
        yield ""
        yield from matrix(normal)
        yield "Hard numbers:"
        yield ""
        yield from matrix(found)
        if refused:
            named = ", ".join(f"`{rule}`" for rule in refused)
            yield f"These do not have the format, or do not take {source}: {named}."
            yield ""
        x = np.concatenate(tensors)
        numbers = None
        if fmt.tensor_scale:
            each = [quantize_blocks(one, with_rule(fmt, base), 1, source) for one in tensors]
            scales = [block_scales(one.scale_codes, one.tensor_scale, fmt) for one in each]
            values = [block_scales(one.scale_codes, None, fmt) for one in each]
            with np.errstate(all="ignore"):
                numbers = np.concatenate(
                    [a.astype(np.float64) / b for a, b in zip(scales, values, strict=True)]
                )
        exact = on_ties(x, found[base], fmt, numbers)
        yield f"Where they differ from `{base}` on hard numbers, percent of all blocks or elements:"
        yield ""
        rows = [
            [f"`{rule}`", *causes(x, found[base], made, fmt, exact)]
            for rule, made in found.items()
            if rule != base
        ]
        yield from table(["rule", *CAUSES], rows, 1)
    if fmt == NVFP4:
        yield from tensor_by_tensor()


def tensor_by_tensor() -> Iterator[str]:
    """Yield the table of how much NVFP4's shares depend on the largest number of a tensor."""
    yield "### NVFP4, tensor by tensor"
    yield ""
    yield (
        "In bfloat16, the largest number g of a tensor decides how many of its scales and "
        "elements are on ties: b, g and E4M3 have few bits. The shares above are of one tensor. "
        f"These are of {TENSORS} tensors of 256 x 256 normal numbers, against `te`: the smallest, "
        "the median and the largest percentage."
    )
    yield ""
    x = normal_numbers(TENSORS << 16, seed=1).reshape(TENSORS, 256, 256) * 0.02
    rows = []
    for source in TYPES:
        shares: dict[str, list[tuple[float, float]]] = {}
        for one in to_source(x, source):
            found = every_rule([one], NVFP4, source)
            for rule, made in found.items():
                te = found["te"]
                pairs = (made.scales, te.scales), (made.codes, te.codes)
                shares.setdefault(rule, []).append(tuple(float(np.mean(a != b)) for a, b in pairs))
        for rule, each in shares.items():
            if rule != "te":
                columns = [np.sort(np.array(part)) * 100 for part in zip(*each, strict=True)]
                cells = [
                    " / ".join(f"{part[i]:.4g}" for i in (0, TENSORS // 2, -1)) for part in columns
                ]
                rows.append([source, f"`{rule}`", *cells])
    yield from table(["input", "rule", "scales", "codes"], rows, 2)


def first_bytes(x: Array, fmt: BlockFormat, rule: str) -> tuple[Array, Array] | None:
    """Return the bytes of scales and elements of the first row; None if the rule refuses it."""
    try:
        found = outcome_by_rule(np.asarray(x, np.float32), with_rule(fmt, rule), "float32")
    except ValueError:
        return None
    return found.scales[0], found.codes[0]


def zero_row(fmt: BlockFormat, rule: str) -> str:
    """Describe a block of zeros in a tensor that is not: scale, and codes of 0 and -0."""
    x = np.zeros((2, fmt.block))
    x[0, 1], x[1] = -0.0, 1.0
    found = first_bytes(x, fmt, rule)
    assert found is not None
    scales, codes = found
    return f"0x{scales[0]:02X}; 0x{codes[0]:02X}, 0x{codes[1]:02X}"


def special_row(fmt: BlockFormat, rule: str, special: float) -> str:
    """Describe a block with a number that is not finite: scale, its code, the others."""
    x = np.ones((2, fmt.block))
    x[0, 0] = special
    found = first_bytes(x, fmt, rule)
    if found is None:
        return "refused"
    scales, codes = found
    how = with_rule(fmt, rule)
    number = quantize_blocks(np.float32(x), how, 1).tensor_scale
    scale = block_scales(scales[:1], number, how)
    with np.errstate(all="ignore"):
        value = float(
            npfp8.decode(codes[1:2].view(fmt.element.code_dtype), fmt.element)[0] * scale[0]
        )
    others = "NaN" if np.isnan(value) else f"{value:.3g}"
    return f"0x{scales[0]:02X}; 0x{codes[0]:02X}; {others}"


def tie_row(fmt: BlockFormat, rule: str) -> str:
    """Name what becomes of ties, by two ties whose even neighbours lie on either side."""
    how = with_rule(fmt, rule)
    element = fmt.element
    values = np.unique(np.abs(element.values[np.isfinite(element.values)])).astype(np.float64)
    lead = element.max if fmt.powers_of_two else 6.0 * 448
    x = np.zeros((1, fmt.block))
    x[0, 0] = lead
    scale = quantize_blocks(np.float32(x), how, 1)
    unit = float(block_scales(scale.scale_codes, scale.tensor_scale, how)[0, 0])
    x[0, 1] = (values[0] + values[1]) / 2 * unit
    x[0, 2] = (values[1] + values[2]) / 2 * unit
    x[0, 3] = (values[1] + 3 * values[2]) / 4 * unit
    _, codes = first_bytes(x, fmt, rule) or ((), ())
    found = tuple(int(code) & 7 for code in codes[1:4])
    return {
        (0, 2, 2): "to even",
        (1, 2, 2): "away from zero",
        (0, 1, 2): "toward zero",
        (0, 1, 1): "all cut toward zero",
    }[found]


def common(formats: Iterable[BlockFormat]) -> Iterator[str]:
    """Yield the sections about zeros, special numbers, ties and the rules in words."""
    formats = list(formats)

    def by_rule(describe: Callable[[BlockFormat, str], str]) -> Iterator[str]:
        powers = [fmt for fmt in formats if fmt.powers_of_two]
        for group in (powers, [fmt for fmt in formats if not fmt.powers_of_two]):
            rows = []
            for rule in rules_of(group[0]):
                cells = []
                for fmt in group:
                    taken = first_bytes(np.ones((1, fmt.block)), fmt, rule) is not None
                    cells.append(describe(fmt, rule) if taken else "")
                rows.append([f"`{rule}`", *cells])
            yield from table(["rule", *(fmt.name for fmt in group)], rows)

    yield "## Blocks of zeros"
    yield ""
    yield "The byte of the scale; the codes of 0 and of -0. The tensor has other numbers."
    yield ""
    yield from by_rule(zero_row)
    for name, special in (("A NaN in a block", np.nan), ("An infinity in a block", np.inf)):
        yield f"## {name}"
        yield ""
        yield "The byte of the scale; the code of that number; the value of the others (given: 1)."
        yield ""
        yield from by_rule(lambda fmt, rule, special=special: special_row(fmt, rule, special))
    yield "## Ties of elements"
    yield ""
    yield from by_rule(tie_row)
    yield "## The rules in words"
    yield ""
    yield (
        "`a` is the largest magnitude of a block, `M` the largest element, `emax` its exponent, "
        "`m` its mantissa bits; for NVFP4, `b` is that of a block and `g` that of the tensor, "
        "`L` the largest scale."
    )
    yield ""
    for fmt in (formats[0], NVFP4):
        rows = [
            [f"`{rule}`", plain(how.description), reason(fmt, rule)]
            for rule, how in rules_of(fmt).items()
        ]
        yield from table(["rule", "what it computes", "why it differs"], rows)


def recorded() -> Iterator[str]:
    """Yield the section about the parties' own code."""
    yield "## Whose code was run"
    yield ""
    rows = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else []
    yield (
        "The tables are computed by the rules of `npfp8`. For these parties, the code itself was "
        "run on the same numbers (`scripts/compare_block_quantizers.py --peers`), and every byte "
        "compared with the rule's."
    )
    yield ""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["rule"], row["package"], row["version"]), []).append(row)
    lines = []
    for (rule, package, version), group in groups.items():
        agreed = [f"{row['format']} {row['source']}" for row in group if row["agrees"]]
        others = [f"{row['format']} {row['source']}" for row in group if not row["agrees"]]
        blocks = sum(row["blocks"] for row in group)
        by: dict[str, list[str]] = {}
        for one in agreed:
            by.setdefault(one.split()[0], []).append(one.split()[1])
        text = "; ".join(f"{name} ({', '.join(sources)})" for name, sources in by.items())
        lines.append([f"`{rule}`", f"{package} {version}", text, f"{blocks:,}", ", ".join(others)])
    yield from table(["rule", "code", "every byte agrees", "blocks", "differs"], lines)
    yield (
        "The other rules are of code that needs a GPU (TransformerEngine, Triton, vLLM) or of "
        "Quark's NVFP4; tests compare them with rules rewritten from the published source, or with "
        "values. microxcaling and Quark return numbers, not bytes: their codes follow from the "
        "numbers and from the scales that their own functions compute."
    )
    yield ""


def columns() -> Iterator[str]:
    """Yield the table of the causes of differences."""
    yield from table(["column", "what differs"], [[name, text] for name, text in CAUSES.items()])


def page(formats: Iterable[BlockFormat]) -> dict[str, list[str]]:
    """Return the parts of the page by name; of the formats, those asked for."""
    parts = {"columns": list(columns())}
    parts["rules"] = [*common(BLOCK_FORMATS.values()), *recorded()]
    parts |= {fmt.name: list(section(fmt)) for fmt in formats}
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the page with the rules")
    parser.add_argument("--formats", nargs="+", metavar="NAME", help="with --check: these alone")
    parser.add_argument("--peers", action="store_true", help="run the parties' own code first")
    arguments = parser.parse_args()
    if arguments.formats and not arguments.check:
        parser.error("--formats is for --check: the page has all formats")
    formats = [npfp8.blocks.as_block_format(name) for name in arguments.formats or BLOCK_FORMATS]
    if arguments.peers:
        text = json.dumps(run_peers(), indent=1)
        with replaced_file(RECORD) as file:
            file.write(f"{text}\n".encode())
    parts = page(formats)
    if not arguments.check:
        head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        lines = [head + MARK, "", *(line for part in parts.values() for line in part)]
        with replaced_file(PAGE) as file:
            file.write(("\n".join(lines).rstrip() + "\n").encode())
        return 0
    old = PAGE.read_text(encoding="utf-8")
    wrong = 0
    for name, lines in parts.items():
        if "\n".join(lines).strip() in old:
            continue
        wrong += 1
        print(f"{PAGE.name}: the part {name!r} is not what the rules give now", file=sys.stderr)
        known = set(old.splitlines())
        news = [line for line in lines if line not in known]
        print("\n".join(difflib.unified_diff([], news[:10], lineterm="")), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
