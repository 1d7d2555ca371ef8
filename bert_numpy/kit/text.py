"""A kit as text: each tensor a file of words, for test benches and C programs without Python.

A kit's tensors are written in the forms of :mod:`npfp8.vectors.writers`, in a folder for each case
of the kit (``operator/gemm-e4m3``), which stands alone:

- ``a.input.mem``: an input, as the operation sees it; a view is resolved;
- ``sum.expected.mem``: a result;
- ``sum.exact.mem``: for a product, the exact sums that the result is rounded from;
- ``case.txt``: the files, and the operations with their rules, in words.

An implementation writes its results as ``sum.mem`` beside them, or into another folder under the
same names; :func:`bert_numpy.kit.candidate.load_candidate` reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from bert_numpy.kit.block_operations import rules_in_words
from bert_numpy.kit.exact import ExactSum, exact_sum
from bert_numpy.kit.manifest import Kit, Tensor, apply_view
from bert_numpy.kit.operations import RULES
from npfp8.arrays import Array
from npfp8.bfloat16 import to_bits
from npfp8.files import is_plain_name
from npfp8.formats import FORMATS, FloatFormat, Format
from npfp8.vectors.columns import Column
from npfp8.vectors.writers import FORMS, Form

__all__ = ["CASE", "INDEX", "WRITTEN", "Summary", "word_bits", "words_of", "write_kit_text"]

#: The names of a case's description, and of the list of all cases.
CASE, INDEX = "case.txt", "index.txt"

#: The ends of the names of files that are written here, before the suffix of their form.
WRITTEN = (".input", ".expected", ".exact")

Words = npt.NDArray[np.unsignedinteger[Any]]

#: The most characters of a line of a rule.
_LINE = 100


class Summary(NamedTuple):
    """What was written: the number of cases, results, files and bytes."""

    cases: int
    results: int
    files: int
    size: int


def word_bits(tensor: Tensor) -> int:
    """Return the bits of a word that holds an element of a tensor."""
    fmt = FORMATS.get(tensor.fmt)
    if isinstance(fmt, FloatFormat):
        return fmt.bits
    return {"bfloat16": 16, "float32": 32, "codes": 8, "bytes": 8, "integers": 64}[tensor.kind]


def words_of(tensor: Tensor, x: Array) -> Words:
    """Return a tensor's elements as words, row by row: the bits of numbers, codes as they are."""
    x = np.ascontiguousarray(x).reshape(-1)
    if tensor.kind == "bfloat16":
        return to_bits(x)
    return x.view(f"u{x.dtype.itemsize}")


@dataclass
class _File:
    """A file of a case: a title, what its words are, and the words."""

    title: str
    elements: str
    shape: tuple[int, ...]
    columns: Sequence[Column]
    more: list[str] = field(default_factory=list)

    @property
    def bits(self) -> int:
        return sum(column.bits for column in self.columns)

    @property
    def words(self) -> int:
        return self.columns[0].values.size

    @property
    def comments(self) -> list[str]:
        order = f"shape {_shape(self.shape)}, row by row (the last index runs fastest)"
        return [self.title, *self.more, f"elements: {self.elements}", order]


@dataclass
class _Step:
    """An operation of a case: its result, and the file of each input."""

    name: str
    tensor: Tensor
    files: dict[str, str]


def write_kit_text(
    kit: Kit,
    folder: Path,
    form: str = "text",
    levels: Iterable[str] = ("codec", "operator"),
    operations: Iterable[str] = (),
) -> Summary:
    """Write the tensors of a kit as text, each case of it in a folder.

    Parameters
    ----------
    kit : Kit
    folder : Path
        It exists.
    form : {"text", "memory", "c"}
    levels : iterable of str
        Levels of the kit.
    operations : iterable of str
        Only results of these operations; of all if there is none.

    Raises
    ------
    BertNumpyError
        If the kit has no such tensor, or one whose name no file can have.
    """
    levels, operations = list(levels), list(operations)
    cases: dict[str, list[str]] = {}
    for name, tensor in kit.tensors.items():
        chosen = not operations or tensor.operation in operations
        if tensor.operation != "given" and tensor.level in levels and chosen:
            cases.setdefault(name.rpartition("/")[0], []).append(name)
    if not cases:
        of = f" of operation {', '.join(operations)}" if operations else ""
        raise BertNumpyError(
            f"the kit: expected results of level {', '.join(levels)}{of}, found none"
        )
    written, index = 0, []
    files = 0
    for case, names in cases.items():
        contents = _case_files(kit, case, names, form)
        place = folder.joinpath(*_parts(case))
        place.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            data = text.encode("ascii")
            (place / name).write_bytes(data)
            written += len(data)
        files += len(contents)
        used = dict.fromkeys(kit.tensors[name].operation for name in names)
        index.append(f"{case}: {', '.join(used)}")
    text = "\n".join([*_index_head(form), *index]) + "\n"
    (folder / INDEX).write_bytes(text.encode("ascii"))
    results = sum(map(len, cases.values()))
    return Summary(len(cases), results, files + 1, written + len(text))


def _parts(case: str) -> list[str]:
    """Split the name of a case into names of folders."""
    parts = case.split("/") if case else []
    for part in parts:
        if not is_plain_name(part):
            raise BertNumpyError(f"tensor {case!r}: expected a name of folders, found {part!r}")
    return parts


def _index_head(form: str) -> list[str]:
    return [
        f"# The cases of a bert-numpy kit, in the form {form!r}, with their operations.",
        f"# Each is a folder, whose {CASE} explains its files.",
    ]


def _case_files(kit: Kit, case: str, names: Sequence[str], form: str) -> dict[str, str]:
    """Return the texts of a case's files by their names."""
    files, steps = _collected(kit, names)
    how = FORMS[form]
    head = _description(case, files, steps, how, form)
    texts = {CASE: "\n".join(head) + "\n"}
    if form == "c":
        texts["case.h"] = "\n".join(_c_headers(case, files))
        return texts
    for name, file in files.items():
        texts[name + how.suffix] = how.write("", file.comments, file.columns)
    if form == "memory":
        texts["case.vh"] = _verilog_parameters(case, files)
    return texts


def _collected(kit: Kit, names: Sequence[str]) -> tuple[dict[str, _File], list[_Step]]:
    """Return a case's files by their names without suffix, inputs first used first, and its steps.

    A result of the case that another operation of it reads has one file, the expected one. Any
    other input is written in the view in which the operation sees it.
    """
    files: dict[str, _File] = {}
    steps = []
    bases: dict[tuple[str, str], str] = {}
    # By the names of C and Verilog, in which "a.scale" and "A_scale" are one.
    taken = {_key(_leaf(name)): (name, "") for name in names}
    taken |= {_key(f"{_leaf(name)}_exact"): (name, "exact") for name in names}
    folder = names[0].rpartition("/")[0]
    for name in names:
        tensor = kit.tensors[name]
        step = _Step(name, tensor, {})
        for role, (source, view) in tensor.inputs.items():
            if source in names and not view:
                step.files[role] = f"{_leaf(source)}.expected"
                continue
            inside = source.rpartition("/")[0] == folder and not view
            base = _leaf(source) if inside else role
            if (source, view) not in bases:
                if taken.setdefault(_key(base), (source, view)) != (source, view):
                    base = f"{_leaf(name)}.{role}"
                    taken[_key(base)] = source, view
                bases[source, view] = base
            base = bases[source, view]
            step.files[role] = f"{base}.input"
            if step.files[role] not in files:
                files[step.files[role]] = _input_file(kit, source, view)
        steps.append(step)
        files |= _result_files(kit, name)
    return files, steps


def _key(base: str) -> str:
    return _identifier(base).lower()


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def _input_file(kit: Kit, source: str, view: str) -> _File:
    tensor = kit.tensors[source]
    x = apply_view(kit.arrays[source], view)
    seen = f", seen {view}: the file has what is seen" if view else ""
    return _file(tensor, x, f"input: {source}{seen}")


def _file(tensor: Tensor, x: Array, title: str) -> _File:
    column = Column(_field(tensor), word_bits(tensor), words_of(tensor, x))
    return _File(title, _elements(tensor), x.shape, [column])


def _field(tensor: Tensor) -> str:
    """Return the name of a word in the struct of C."""
    return {"codes": "code", "bytes": "byte", "integers": "value"}.get(tensor.kind, "bits")


def _result_files(kit: Kit, name: str) -> dict[str, _File]:
    tensor = kit.tensors[name]
    file = _file(tensor, kit.arrays[name], f"expected result: {name}")
    file.more = _operation_in_words(tensor)
    files = {f"{_leaf(name)}.expected": file}
    exact = exact_sum(tensor, kit.inputs(name))
    if exact is not None:
        files[f"{_leaf(name)}.exact"] = _exact_file(exact, name, tensor)
    return files


def _exact_file(exact: ExactSum, name: str, tensor: Tensor) -> _File:
    width = -(-exact.bits // 64) * 64
    numbers = [int(number) for number in exact.integers.reshape(-1)]
    columns = []
    for low in range(width - 64, -1, -64):
        part = np.array([number >> low & (1 << 64) - 1 for number in numbers], np.uint64)
        field_name = "exact" if width == 64 else f"exact_{low + 63}_{low}"
        columns.append(Column(field_name, 64, part))
    bias = ", before the bias" if "bias" in tensor.inputs else ""
    more = [
        f"the integer times 2^{exact.unit} is the exact sum{bias}; {_leaf(name)}.expected is it, "
        "rounded to float32",
        f"two's complement of {width} bits; these sums need {exact.bits}",
    ]
    if not exact.known.all():
        more.append("0 where an operand makes the sum NaN or infinite")
    title = f"exact sums, not rounded: {name}"
    return _File(title, f"integers of {width} bits", exact.integers.shape, columns, more)


def _elements(tensor: Tensor) -> str:
    """Describe the words of a tensor."""
    fmt = FORMATS.get(tensor.fmt)
    if fmt is not None:
        return f"codes of {_format_in_words(fmt)}"
    return {
        "bfloat16": "the bits of bfloat16 numbers",
        "float32": "the bits of float32 numbers",
        "codes": "codes",
        "bytes": "bytes",
        "integers": "integers of 64 bits, two's complement",
    }[tensor.kind]


def _format_in_words(fmt: Format) -> str:
    if not isinstance(fmt, FloatFormat):
        return f"{fmt}, integers of 8 bits" + ("" if fmt.min_code >= 0 else ", two's complement")
    fields = (
        f"{int(fmt.signed)} sign, {fmt.exponent_bits} exponent, {fmt.mantissa_bits} mantissa bits"
    )
    nan = " ".join(f"{code:02X}" for code in fmt.nan_codes)
    special = [f"NaN {nan}"] if nan and len(fmt.nan_codes) <= 6 else []
    special += [f"infinity {fmt.infinity_code:02X}"] if fmt.has_infinity else []
    return ", ".join([f"{fmt}: {fields}", f"bias {fmt.bias}", *special])


def _operation_in_words(tensor: Tensor) -> list[str]:
    """Return an operation's rule, attributes, and the rules and layouts that these name."""
    rule, _ = RULES[tensor.operation]
    lines = wrap(f"operation {tensor.operation}: {rule}", _LINE, subsequent_indent="  ")
    if tensor.attributes:
        lines += wrap(f"attributes: {json.dumps(dict(tensor.attributes))}", _LINE)
    for words in rules_in_words([tensor.attributes]).values():
        for name, meaning in words.items():
            lines += wrap(f"{name}: {meaning}", _LINE, subsequent_indent="  ")
    return lines


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "of one number"


def _description(
    case: str, files: Mapping[str, _File], steps: Sequence[_Step], how: Form, form: str
) -> list[str]:
    """Return the lines of a case's description."""
    suffix = how.suffix
    lines = [
        f"{case}",
        "",
        "Files, of words in hexadecimal, row by row (the last index runs fastest):",
    ]
    if form == "c":
        lines[-1] = "Arrays in case.h, row by row (the last index runs fastest):"
    names = _c_names(case, files) if form == "c" else {name: name + suffix for name in files}
    width = max(map(len, names.values()))
    for name, file in files.items():
        words = "word" if file.words == 1 else "words"
        lines.append(
            f"  {names[name]:{width}}  {file.words} {words} of {file.bits} bits, shape "
            f"{_shape(file.shape)}; {file.elements}"
        )
    lines += ["", "Operations:"]
    for step in steps:
        leaf = _leaf(step.name)
        lines += [f"  {leaf} = {step.tensor.operation}({', '.join(step.files)})"]
        lines += [f"    {role}: {names[file]}" for role, file in step.files.items()]
        lines.append(f"    result: {names[f'{leaf}.expected']}")
        lines += [f"    {line}" for line in _operation_in_words(step.tensor)]
        own = leaf + (".txt" if form == "c" else suffix)
        lines.append(f"    write yours as {own} (a word a line), here or in {case}/ elsewhere")
    lines += [
        "",
        "Then: bert-numpy golden verify KIT FOLDER, where FOLDER is the one that has "
        f"{case.partition('/')[0]}/ in it.",
    ]
    return lines


def _identifier(name: str) -> str:
    """Return a name that C and Verilog accept."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return name if name[0].isalpha() else f"_{name}"


def _c_names(case: str, files: Mapping[str, _File]) -> dict[str, str]:
    """Return the names of a case's arrays in C."""
    names = {}
    for name in files:
        base, _, what = name.rpartition(".")
        end = "_exact" if what == "exact" else ""
        names[name] = _identifier(f"{case}/{base}{end}")
    assert len(set(names.values())) == len(names), case
    return names


def _c_headers(case: str, files: Mapping[str, _File]) -> Iterator[str]:
    """Yield a header for each file of a case: its array, and the rows and columns of its shape."""
    for name, array in _c_names(case, files).items():
        file = files[name]
        rows, columns = _rows_and_columns(file.shape)
        text = FORMS["c"].write(array, file.comments, file.columns)
        counts = f"#define {array}_rows {rows}\n#define {array}_columns {columns}\n"
        yield text.replace(f"#define {array}_count", f"{counts}#define {array}_count")


def _verilog_parameters(case: str, files: Mapping[str, _File]) -> str:
    """Return a file to include in a test bench: the size of each memory."""
    lines = [f"// {case}: words, rows, columns and bits of a word of each memory"]
    for name, file in files.items():
        base, _, what = name.rpartition(".")
        prefix = _identifier(base + ("_exact" if what == "exact" else "")).upper()
        rows, columns = _rows_and_columns(file.shape)
        lines.append(
            f"localparam {prefix}_WORDS = {file.words}, {prefix}_ROWS = {rows}, "
            f"{prefix}_COLUMNS = {columns}, {prefix}_BITS = {file.bits};"
        )
    return "\n".join(lines) + "\n"


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a shape as that of a matrix: the last axis are its columns."""
    columns = shape[-1] if shape else 1
    return int(np.prod(shape, dtype=np.int64)) // max(columns, 1), columns
