"""Tables of unsigned integers as text: for test benches and C programs without Python.

A table has comments and named columns of a fixed number of bits. It has three written forms:

- **text**, as TestFloat's files: ``#`` comments, then one case per line, its columns in
  hexadecimal, separated by spaces;
- **memory**, for Verilog's ``$readmemh``: ``//`` comments, then one word per line: the columns
  of a case concatenated, the first in the highest bits;
- **c**, a C header: a struct of unsigned integers, and an array of one struct per case.

In all of them a column has a whole number of hexadecimal digits.
:mod:`npfp8.vectors.readers` reads text and memory files back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from npfp8.arguments import require, require_iterable, wrong_type
from npfp8.vectors.columns import IDENTIFIER, Column, c_width

__all__ = ["FORMS", "Form", "write_c_header", "write_memory", "write_text"]

_DIGITS = np.frombuffer(b"0123456789ABCDEF", np.uint8)


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
    >>> from npfp8.vectors.columns import Column
    >>> from npfp8.vectors.writers import write_text
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
    >>> from npfp8.vectors.columns import Column
    >>> from npfp8.vectors.writers import write_memory
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
    >>> from npfp8.vectors.columns import Column
    >>> from npfp8.vectors.writers import write_c_header
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
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(f"name: expected a name of C, found {name!r}")
    lines, columns = _checked(comments, columns)
    if any("*/" in line or "/*" in line for line in lines):
        raise ValueError("comments: expected none with '/*' or '*/' for C")
    if not columns[0].values.size:
        raise ValueError("columns: expected a case, as an array of C has an element; found none")
    fields = [f"    uint{c_width(column.bits)}_t {column.name};" for column in columns]
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
    >>> from npfp8.vectors.writers import FORMS
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
