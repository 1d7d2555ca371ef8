"""Tables of unsigned integers read back from text and memory files, strictly.

Digits may be of either case, and line ends of either kind, with the last one or without.
:mod:`npfp8.vectors.writers` has the forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from npfp8.vectors.columns import Column, c_width, hex_digits

__all__ = ["read_memory", "read_text"]


def read_text(
    text: str, widths: Mapping[str, int], cases: int | None = None
) -> tuple[list[str], list[Column]]:
    r"""Read a table in the form of :func:`npfp8.vectors.writers.write_text`, strictly.

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
    >>> from npfp8.vectors.readers import read_text
    >>> comments, columns = read_text("# one\n3f80 38\n", {"x": 16, "code": 8})
    >>> comments, [hex(column.values[0]) for column in columns]
    (['one'], ['0x3f80', '0x38'])
    """
    comments, body = _split(text, "#")
    digits = [hex_digits(bits) for bits in widths.values()]
    rows = [(number, line, line.split(" ")) for number, line in body]
    return comments, _columns(rows, widths, digits, cases, text.count("\n") + 1)


def read_memory(
    text: str, widths: Mapping[str, int], cases: int | None = None
) -> tuple[list[str], list[Column]]:
    r"""Read a memory file, as a simulator's ``$writememh`` writes it, strictly.

    :func:`npfp8.vectors.writers.write_memory` writes it so, too. A line is a word, perhaps with
    underscores in it and a ``//`` comment after it. An address (``@`` and hexadecimal digits) must
    be the one that comes next.

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
    >>> from npfp8.vectors.readers import read_memory
    >>> comments, columns = read_memory("// one\n3f80_38\n", {"x": 16, "code": 8})
    >>> comments, [hex(column.values[0]) for column in columns]
    (['one'], ['0x3f80', '0x38'])
    """
    comments, body = _split(text, "//")
    digits = [hex_digits(bits) for bits in widths.values()]
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
        Column(name, bits, table[:, i].astype(f"u{c_width(bits) // 8}"))
        for i, (name, bits) in enumerate(widths.items())
    ]
