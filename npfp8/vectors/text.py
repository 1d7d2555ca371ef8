"""Tables of unsigned integers as text: for test benches and C programs without Python.

A table has comments and named columns of a fixed number of bits. It has three written forms:

- **text**, as TestFloat's files: ``#`` comments, then one case per line, its columns in
  hexadecimal, separated by spaces;
- **memory**, for Verilog's ``$readmemh``: ``//`` comments, then one word per line: the columns
  of a case concatenated, the first in the highest bits;
- **c**, a C header: a struct of unsigned integers, and an array of one struct per case.

In all of them a column has a whole number of hexadecimal digits. Text and memory files are read
back: digits in either case, line ends of either kind, with the last one or without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import integer, require, require_iterable, wrong_array, wrong_type

__all__ = [
    "FORMS",
    "Column",
    "Form",
    "read_memory",
    "read_text",
    "write_c_header",
    "write_memory",
    "write_text",
]

Unsigned = npt.NDArray[np.unsignedinteger[Any]]

_DIGITS = np.frombuffer(b"0123456789ABCDEF", np.uint8)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a table: unsigned integers of a fixed number of bits.

    Parameters
    ----------
    name : str
        A name that C accepts for a field.
    bits : int
        The width, 1 to 64.
    values : ndarray of unsigned integers, (cases,)
        Each of at most so many bits.

    Raises
    ------
    TypeError
        If a parameter is not of the type stated.
    ValueError
        If the name is not one of C, the width is out of range, or a value is wider.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.vectors.text import Column
    >>> Column("code", 8, np.uint8([0x38, 0x7E])).digits
    2
    """

    name: str
    bits: int
    values: Unsigned

    def __post_init__(self) -> None:
        require("name", self.name, str, "a str")
        if not _IDENTIFIER.fullmatch(self.name):
            raise ValueError(f"name: expected a name of C, found {self.name!r}")
        object.__setattr__(self, "bits", integer("bits", self.bits))
        if not 1 <= self.bits <= 64:
            raise ValueError(f"bits of {self.name}: expected 1 to 64, found {self.bits}")
        require("values", self.values, np.ndarray, "an array")
        if self.values.dtype.kind != "u" or self.values.ndim != 1:
            expected = "unsigned integers of one axis"
            raise wrong_array("values", expected, self.values, self.values)
        largest = int(self.values.max(initial=0))
        if largest >> self.bits:
            raise ValueError(
                f"values of {self.name}: expected at most {self.bits} bits, found {largest:#x}"
            )

    @property
    def digits(self) -> int:
        """The number of hexadecimal digits of a value."""
        return -(-self.bits // 4)


def write_text(comments: Iterable[str], columns: Sequence[Column]) -> str:
    """Return a table as text: ``#`` comments, then one case per line.

    Parameters
    ----------
    comments : iterable of str
        Lines, without the ``#``.
    columns : sequence of Column
        Of equal length.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If there is no column, or their lengths or a comment's lines are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.vectors.text import Column, write_text
    >>> table = [Column("x", 16, np.uint16([0x3F80])), Column("code", 8, np.uint8([0x38]))]
    >>> print(write_text(["1 in E4M3FN"], table), end="")
    # 1 in E4M3FN
    3F80 38
    """
    lines, columns = _checked(comments, columns)
    return _comments("# ", lines) + _rows(columns, " ")


def write_memory(comments: Iterable[str], columns: Sequence[Column]) -> str:
    """Return a table as a memory file for Verilog's ``$readmemh``, one word per line.

    The comments are followed by the fields of a word: the columns, the first in the highest
    bits, each of a whole number of hexadecimal digits.

    Parameters
    ----------
    comments, columns
        As for :func:`write_text`.

    Raises
    ------
    TypeError, ValueError
        As :func:`write_text`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.vectors.text import Column, write_memory
    >>> table = [Column("x", 16, np.uint16([0x3F80])), Column("code", 8, np.uint8([0x38]))]
    >>> print(write_memory(["1 in E4M3FN"], table), end="")
    // 1 in E4M3FN
    // words: 1 of 24 bits
    // x: bits 23 to 8
    // code: bits 7 to 0
    3F8038
    """
    lines, columns = _checked(comments, columns)
    width = 4 * sum(column.digits for column in columns)
    fields = [f"words: {columns[0].values.size} of {width} bits"]
    for column in columns:
        width -= 4 * column.digits
        # A width that is no whole number of digits has zeros above it.
        place = f"bits {width + column.bits - 1} to {width}" if column.bits > 1 else f"bit {width}"
        fields.append(f"{column.name}: {place}")
    return _comments("// ", [*lines, *fields]) + _rows(columns, "")


def write_c_header(name: str, comments: Iterable[str], columns: Sequence[Column]) -> str:
    """Return a table as a C header: a struct type, the number of cases, and their array.

    The header is C99 and C++. For the name ``gemm`` the type is ``gemm_case``, the macro with
    the number of cases ``gemm_count``, and the array ``gemm``.

    Parameters
    ----------
    name : str
        A name that C accepts.
    comments, columns
        As for :func:`write_text`.

    Raises
    ------
    TypeError, ValueError
        As :func:`write_text`; also if the name is not one of C.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.vectors.text import Column, write_c_header
    >>> table = [Column("x", 16, np.uint16([0x3F80])), Column("code", 8, np.uint8([0x38]))]
    >>> print(write_c_header("ones", ["1 in E4M3FN"], table), end="")
    /* 1 in E4M3FN */
    #ifndef ones_H
    #define ones_H
    #include <stdint.h>
    <BLANKLINE>
    typedef struct {
        uint16_t x;
        uint8_t code;
    } ones_case;
    <BLANKLINE>
    #define ones_count 1
    static const ones_case ones[ones_count] = {
    {0x3F80,0x38},
    };
    <BLANKLINE>
    #endif
    """
    require("name", name, str, "a str")
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"name: expected a name of C, found {name!r}")
    lines, columns = _checked(comments, columns)
    if any("*/" in line or "/*" in line for line in lines):
        raise ValueError("comments: expected none with '/*' or '*/' for C")
    if not columns[0].values.size:
        raise ValueError("columns: expected a case, as an array of C has an element; found none")
    fields = [f"    uint{_c_width(column.bits)}_t {column.name};" for column in columns]
    cases = _rows(columns, ",", prefix="0x", before="{", after="},")
    header = [
        *(f"/* {line} */" for line in lines),
        f"#ifndef {name}_H",
        f"#define {name}_H",
        "#include <stdint.h>",
        "",
        "typedef struct {",
        *fields,
        f"}} {name}_case;",
        "",
        f"#define {name}_count {columns[0].values.size}",
        f"static const {name}_case {name}[{name}_count] = {{",
    ]
    return "\n".join(header) + "\n" + cases + "};\n\n#endif\n"


def read_text(
    text: str, widths: Mapping[str, int], cases: int | None = None
) -> tuple[list[str], list[Column]]:
    r"""Read a table in the form of :func:`write_text`, strictly.

    Parameters
    ----------
    text : str
    widths : mapping of str to int
        The bits of each column, by name, in their order.
    cases : int, optional
        The number of cases that there must be.

    Returns
    -------
    comments : list of str
        All lines that begin with ``#``, without it and the space that follows.
    columns : list of Column

    Raises
    ------
    ValueError
        If it is anything else. The message names the line, and what was expected and found. A
        text that ends too early, between two lines or within one, is named as cut off.

    Examples
    --------
    >>> from npfp8.vectors.text import read_text
    >>> comments, columns = read_text("# one\n3f80 38\n", {"x": 16, "code": 8})
    >>> comments, [hex(column.values[0]) for column in columns]
    (['one'], ['0x3f80', '0x38'])
    """
    comments, body = _split(text, "#")
    digits = [-(-bits // 4) for bits in widths.values()]
    rows = [(number, line, line.split(" ")) for number, line in body]
    return comments, _columns(rows, widths, digits, cases, text.count("\n") + 1)


def read_memory(
    text: str, widths: Mapping[str, int], cases: int | None = None
) -> tuple[list[str], list[Column]]:
    r"""Read a memory file, as :func:`write_memory` or a simulator's ``$writememh`` writes it.

    A line is a word, perhaps with underscores in it and a ``//`` comment after it. An address
    (``@`` and hexadecimal digits) must be the one that comes next.

    Parameters
    ----------
    text, widths, cases
        As for :func:`read_text`.

    Returns
    -------
    comments : list of str
        All lines that begin with ``//``, without it and the space that follows.
    columns : list of Column

    Raises
    ------
    ValueError
        As :func:`read_text`; also for digits that a simulator does not know (x or z).

    Examples
    --------
    >>> from npfp8.vectors.text import read_memory
    >>> comments, columns = read_memory("// one\n3f80_38\n", {"x": 16, "code": 8})
    >>> comments, [hex(column.values[0]) for column in columns]
    (['one'], ['0x3f80', '0x38'])
    """
    comments, body = _split(text, "//")
    digits = [-(-bits // 4) for bits in widths.values()]
    ends = np.cumsum(digits).tolist()
    rows: list[tuple[int, str, list[str]]] = []
    for number, line in body:
        word = line.partition("//")[0].strip()
        if word.startswith("@"):
            if f"{word[1:]:0>16}".lower() != f"{len(rows):016x}":
                raise ValueError(
                    f"line {number}: expected the address @{len(rows):x}, found {word[:80]!r}"
                )
            continue
        word = word.replace("_", "")
        if set(word) & set("xXzZ"):
            raise ValueError(f"line {number}: expected a known value, found {word[:80]!r}")
        parts = [word[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        parts[-1] += word[ends[-1] :]
        rows.append((number, line, parts))
    return comments, _columns(rows, widths, digits, cases, text.count("\n") + 1, "")


@dataclass(frozen=True)
class Form:
    """A written form of a table.

    Attributes
    ----------
    suffix : str
        The end of a file's name.
    write : callable (name, comments, columns) -> str
    comment : str
        The beginning of a comment.

    Examples
    --------
    >>> from npfp8.vectors.text import FORMS
    >>> FORMS["memory"].suffix
    '.mem'
    """

    suffix: str
    write: Callable[[str, Iterable[str], Sequence[Column]], str]
    comment: str


#: The written forms, by name.
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "text": Form(".txt", lambda _, comments, columns: write_text(comments, columns), "#"),
        "memory": Form(".mem", lambda _, comments, columns: write_memory(comments, columns), "//"),
        "c": Form(".h", write_c_header, "/*"),
    }
)


def _checked(
    comments: Iterable[str], columns: Sequence[Column]
) -> tuple[list[str], Sequence[Column]]:
    require_iterable("comments", comments, "lines")
    require_iterable("columns", columns, "columns")
    lines, columns = list(comments), list(columns)
    for line in lines:
        require("comments", line, str, "lines")
        if len(line.splitlines()) > 1 or not line.isascii():
            raise ValueError(f"comments: expected lines of ASCII, found {line!r}")
    for column in columns:
        if not isinstance(column, Column):
            raise wrong_type("columns", "columns", column)
    if len({column.values.size for column in columns}) != 1:
        found = [column.values.size for column in columns]
        raise ValueError(f"columns: expected some of equal length, found lengths {found}")
    return lines, columns


def _comments(prefix: str, lines: Iterable[str]) -> str:
    return "".join(f"{prefix}{line}".rstrip() + "\n" for line in lines)


def _rows(
    columns: Sequence[Column], between: str, prefix: str = "", before: str = "", after: str = ""
) -> str:
    """Return one line per case, all made at once as a matrix of characters."""
    cases = columns[0].values.size

    def constant(text: str) -> npt.NDArray[np.uint8]:
        return np.broadcast_to(np.frombuffer(text.encode(), np.uint8), (cases, len(text)))

    parts = []
    for i, column in enumerate(columns):
        parts.append(constant((between if i else before) + prefix))
        shifts = np.arange(4 * (column.digits - 1), -1, -4, dtype=np.uint64)
        nibbles = (column.values.astype(np.uint64)[:, None] >> shifts) & np.uint64(15)
        parts.append(_DIGITS[nibbles.astype(np.intp)])
    parts.append(constant(after + "\n"))
    return np.concatenate(parts, axis=1).tobytes().decode("ascii")


def _c_width(bits: int) -> int:
    return next(width for width in (8, 16, 32, 64) if bits <= width)


def _split(text: str, comment: str) -> tuple[list[str], list[tuple[int, str]]]:
    """Separate comments from the lines of cases, which keep their numbers; blank lines go."""
    comments, body = [], []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.startswith(comment):
            comments.append(line.removeprefix(comment).removeprefix(" "))
        elif line.strip():
            body.append((number, line))
    return comments, body


def _columns(
    rows: Sequence[tuple[int, str, Sequence[str]]],
    widths: Mapping[str, int],
    digits: Sequence[int],
    cases: int | None,
    lines: int,
    between: str = " ",
) -> list[Column]:
    """Make columns of the digits of each row."""
    few = cases is not None and len(rows) <= cases
    table = np.zeros((len(rows), len(digits)), np.uint64)
    hexadecimal = set("0123456789abcdefABCDEF")
    for i, (number, line, words) in enumerate(rows):
        right = [len(word) for word in words] == list(digits)
        if not right or set("".join(words)) - hexadecimal:
            last = few and i == len(rows) - 1 and number == lines
            if last and len(line) < sum(digits) + len(between) * (len(digits) - 1):
                raise ValueError(
                    f"line {number}: cut off within the line: expected {cases} cases, found {i} "
                    f"and {line[:80]!r}"
                )
            expected = between.join("F" * count for count in digits)
            raise ValueError(
                f"line {number}: expected hexadecimal digits as in {expected!r}, "
                f"found {line[:80]!r}"
            )
        table[i] = [int(word, 16) for word in words]
    if cases is not None and len(rows) < cases:
        where = f"after line {rows[-1][0]}" if rows else "before the first case"
        raise ValueError(f"cut off {where}: expected {cases} cases, found {len(rows)}")
    if cases is not None and len(rows) > cases:
        raise ValueError(f"line {rows[cases][0]}: expected {cases} cases, found {len(rows)}")
    return [
        Column(name, bits, table[:, i].astype(f"u{_c_width(bits) // 8}"))
        for i, (name, bits) in enumerate(widths.items())
    ]
