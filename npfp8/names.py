"""Names as people write them: in any case, and with a typing error that can be pointed out."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["match", "suggestion"]


def match(name: str, known: Iterable[str]) -> str | None:
    """Find a name in a list of names, in upper or lower case.

    Parameters
    ----------
    name : str
    known : iterable of str
        No two of them may differ in case alone.

    Returns
    -------
    str or None
        The name as the list spells it; None if the list does not have it.

    Examples
    --------
    >>> match("E4M3", ["fp32", "e4m3"])
    'e4m3'
    """
    folded = name.casefold()
    return next((candidate for candidate in known if candidate.casefold() == folded), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the name most like a mistyped one.

    Parameters
    ----------
    name : str
    known : iterable of str

    Returns
    -------
    str
        ``"; did you mean 'e4m3'?"``, or nothing if no name is near.

    Examples
    --------
    >>> print("unknown format 'em43'" + suggestion("em43", ["fp32", "e4m3", "e5m2"]))
    unknown format 'em43'; did you mean 'e4m3'?
    """
    from difflib import get_close_matches  # noqa: PLC0415 (imported only when an error is raised)

    spelled = {candidate.casefold(): candidate for candidate in known}
    folded = name.casefold()
    near = get_close_matches(folded, spelled)
    # Two letters that changed places are the commonest error: 'sts2' is 'sst2', not 'stsb'. Then
    # come names that were not written to their ends: 'mxfp8' is 'MXFP8_E4M3', not 'MXFP4'.
    order = [x for x in spelled if x.startswith(folded)]
    near.sort(
        key=lambda x: (sorted(x) != sorted(folded), order.index(x) if x in order else len(spelled))
    )
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""
