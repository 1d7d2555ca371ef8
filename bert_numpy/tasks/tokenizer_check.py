"""The check of ``tokenizer.json`` before the ``tokenizers`` library reads it.

A file of a few kilobytes can make the library fill the memory (normalizers that double the
text again and again), search forever (regular expressions that backtrack), or end in a
panic that no caller can keep off standard error. A trial cannot find this, since it
depends on the text. So every component must be a known one, with values within bounds
far beyond those of any published checkpoint. Anything else is refused, and the message names
its place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bert_numpy.tasks.charsmap import check_charsmap

__all__ = ["check_class", "check_description", "check_vocabulary", "special_ids"]

#: The most components in a sequence, including nested ones.
_MOST_COMPONENTS = 32

#: The deepest nesting of sequences.
_DEEPEST = 3

#: The largest factor by which all replacements of a normalizer may multiply a text's length.
_MOST_GROWTH = 32

#: The most characters of a replacement, a pattern, a prefix, or the name of a token.
_LONGEST = 1_000

#: The most characters of a known word: WordPiece's time grows with their cube.
_LONGEST_WORD = 1_000

#: The most entries of a template, and ids of one special token.
_MOST_PIECES = 16

_MOST_ADDED = 10_000

#: The most values in parts that are read but not used, such as the decoder.
_MOST_VALUES = 1_000

#: The largest magnitude of Unigram's scores, which are logarithms of probabilities.
_LARGEST_SCORE = 1e6

#: Regular expressions that cannot backtrack: one character or class, repeated at least once;
#: and GPT-2's expression, whose alternatives fail after one character at most.
_PLAIN = re.compile(
    r"(\\[sSdDwWnrt]|\\[pP]\{\^?\w{1,40}\}|\\\W|\[(?:[^\[\]\\]|\\.)+\]|[^\\\[\](){}*+?|^$])"
    r"(\+|\{[1-9]\d{0,2}(,\d{0,3})?\})?"
)
_KNOWN = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


class _RefusedError(ValueError):
    """The error for a place in the file: the values expected and found there."""

    def __init__(self, place: str, expected: str, found: Any) -> None:
        shown = "null" if found is None else repr(found)
        cut = shown if len(shown) <= 200 else f"{shown[:200]}..."
        super().__init__(f"key {place!r}: expected {expected}, found {cut}")


Check = Callable[[str, Any], None]


def _whether(place: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _RefusedError(place, "true or false", value)


def _perhaps(check: Check) -> Check:
    def either(place: str, value: Any) -> None:
        if value is not None:
            check(place, value)

    return either


def _text(least: int = 0, most: int = _LONGEST) -> Check:
    def check(place: str, value: Any) -> None:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise _RefusedError(place, f"a text of {least}..{most} characters", value)

    return check


def _number(least: int, most: int) -> Check:
    def check(place: str, value: Any) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _RefusedError(place, f"a whole number of {least}..{most}", value)

    return check


def _one_of(*names: str) -> Check:
    def check(place: str, value: Any) -> None:
        if value not in names:
            raise _RefusedError(place, f"one of {', '.join(names)}", value)

    return check


def _pattern(place: str, value: Any) -> None:
    """Check for a text, or for a regular expression that runs in linear time."""
    if isinstance(value, dict) and list(value) == ["String"]:
        _text(1)(f"{place}.String", value["String"])
    elif isinstance(value, dict) and list(value) == ["Regex"]:
        found = value["Regex"]
        _text(1)(f"{place}.Regex", found)
        if found not in _KNOWN and not _PLAIN.fullmatch(found):
            raise _RefusedError(f"{place}.Regex", "one character or class, perhaps repeated", found)
    else:
        raise _RefusedError(place, "a String or a Regex", value)


def _charsmap(place: str, value: Any) -> None:
    _text(0, 10_000_000)(place, value)
    try:
        check_charsmap(value)
    except ValueError as error:
        raise _RefusedError(place, f"a map of characters ({error})", value) from None


def _special(place: str, value: Any) -> None:
    """Check for a token and its id, as in the post-processors of BERT and RoBERTa."""
    if not isinstance(value, list) or len(value) != 2:
        raise _RefusedError(place, "a token and its id", value)
    _text(1)(f"{place}.0", value[0])
    _number(0, (1 << 31) - 1)(f"{place}.1", value[1])


def _template_tokens(place: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > _MOST_PIECES:
        raise _RefusedError(place, f"at most {_MOST_PIECES} tokens, a JSON object", value)
    for name, token in value.items():
        here = f"{place}.{name}"
        if not isinstance(token, dict):
            raise _RefusedError(here, "a JSON object", token)
        ids, tokens = token.get("ids"), token.get("tokens")
        if not isinstance(ids, list) or not 1 <= len(ids) <= _MOST_PIECES:
            raise _RefusedError(f"{here}.ids", f"1..{_MOST_PIECES} ids", ids)
        for one in ids:
            _number(0, (1 << 31) - 1)(f"{here}.ids", one)
        if not isinstance(tokens, list) or len(tokens) != len(ids):
            raise _RefusedError(f"{here}.tokens", f"{len(ids)} tokens", tokens)


_BYTE_LEVEL: dict[str, Check] = dict.fromkeys(
    ("add_prefix_space", "trim_offsets", "use_regex"), _whether
)

#: The keys of each component, by the kind of component and its type.
_COMPONENTS: dict[str, dict[str, dict[str, Check]]] = {
    "normalizer": {
        "BertNormalizer": {
            "clean_text": _whether,
            "handle_chinese_chars": _whether,
            "strip_accents": _perhaps(_whether),
            "lowercase": _whether,
        },
        **{name: {} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt")},
        "StripAccents": {},
        "ByteLevel": {},
        "Strip": {"strip_left": _whether, "strip_right": _whether},
        "Replace": {"pattern": _pattern, "content": _text()},
        "Prepend": {"prepend": _text(1)},
        "Precompiled": {"precompiled_charsmap": _charsmap},
    },
    "pre_tokenizer": {
        **{name: {} for name in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")},
        "UnicodeScripts": {},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": {
            "replacement": _text(1, 1),
            "add_prefix_space": _whether,
            "prepend_scheme": _one_of("always", "first", "never"),
            "split": _whether,
        },
        "Punctuation": {"behavior": _text(1)},
        "Digits": {"individual_digits": _whether},
        "CharDelimiterSplit": {"delimiter": _text(1, 1)},
        "Split": {"pattern": _pattern, "behavior": _text(1), "invert": _whether},
    },
    "post_processor": {
        "BertProcessing": {"sep": _special, "cls": _special},
        "RobertaProcessing": {
            "sep": _special,
            "cls": _special,
            "trim_offsets": _whether,
            "add_prefix_space": _whether,
        },
        "ByteLevel": _BYTE_LEVEL,
        "TemplateProcessing": {
            "single": lambda place, value: _template(place, value, "A"),
            "pair": lambda place, value: _template(place, value, "AB"),
            "special_tokens": _template_tokens,
        },
    },
}

#: The key of the list in a Sequence.
_LISTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
}

#: Components that may occur only once: every repetition would multiply the text.
_ONCE = ("ByteLevel", "Metaspace", "Precompiled", "TemplateProcessing", "BertProcessing")

_MODELS: dict[str, dict[str, Check]] = {
    "WordPiece": {
        "unk_token": _text(1),
        "continuing_subword_prefix": _text(0, 32),
        "max_input_chars_per_word": _number(1, _LONGEST_WORD),
    },
    "BPE": {
        "unk_token": _perhaps(_text(1)),
        "continuing_subword_prefix": _perhaps(_text(0, 32)),
        "end_of_word_suffix": _perhaps(_text(0, 32)),
        "fuse_unk": _whether,
        "byte_fallback": _whether,
        "ignore_merges": _whether,
    },
    "WordLevel": {"unk_token": _text(1)},
    "Unigram": {"unk_id": _perhaps(_number(0, (1 << 31) - 1)), "byte_fallback": _whether},
}


def check_description(raw: Mapping[str, Any]) -> None:
    """Check the object of a ``tokenizer.json``.

    Raises
    ------
    ValueError
        If a part is refused. The message names the key, the value expected and the value
        found.
    """
    for kind in _COMPONENTS:
        value = raw.get(kind)
        if value is None:
            continue
        found = list(_flat(kind, kind, value))
        if len(found) > _MOST_COMPONENTS:
            raise _RefusedError(kind, f"at most {_MOST_COMPONENTS} components", len(found))
        types = [one["type"] for one in found]
        if twice := [name for name in _ONCE if types.count(name) > 1]:
            raise _RefusedError(kind, f"at most one {twice[0]}", types)
        if kind == "post_processor" and any(name != "ByteLevel" for name in types[:-1]):
            # In a later component the library loses track of the texts that tokens belong to.
            raise _RefusedError(kind, "the component that adds tokens as the last one", types)
        if kind == "normalizer":
            growth = 1.0
            for one in found:
                growth *= _growth(one)
            if growth > _MOST_GROWTH:
                raise _RefusedError(kind, f"texts that grow at most {_MOST_GROWTH} times", growth)
    for key, value in raw.items():
        if key not in (*_COMPONENTS, "model", "added_tokens"):
            _small(key, value)
    _added(raw.get("added_tokens"))
    model = raw.get("model")
    if not isinstance(model, dict):
        raise _RefusedError("model", "a JSON object", model)
    _model(model)


def _flat(kind: str, place: str, value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the checked components of a sequence, at any depth."""
    if not isinstance(value, dict):
        raise _RefusedError(place, "a JSON object with a 'type'", value)
    name = value.get("type")
    if name == "Sequence":
        key = _LISTS[kind]
        parts = value.get(key)
        if not isinstance(parts, list) or depth == _DEEPEST:
            raise _RefusedError(f"{place}.{key}", f"a list, at most {_DEEPEST} deep", parts)
        if len(parts) > _MOST_COMPONENTS:
            raise _RefusedError(f"{place}.{key}", f"at most {_MOST_COMPONENTS} parts", len(parts))
        for number, part in enumerate(parts):
            yield from _flat(kind, f"{place}.{key}.{number}", part, depth + 1)
        return
    known = _COMPONENTS[kind]
    if not isinstance(name, str) or name not in known:
        raise _RefusedError(f"{place}.type", f"one of {', '.join((*known, 'Sequence'))}", name)
    if name == "Precompiled" and "precompiled_charsmap" not in value:  # the library panics
        raise _RefusedError(f"{place}.precompiled_charsmap", "a map of characters", "none")
    for key, part in value.items():
        if key in known[name]:
            known[name][key](f"{place}.{key}", part)
        elif key != "type":
            _small(f"{place}.{key}", part)
    if name == "TemplateProcessing":
        _template_agrees(place, value)
    yield value


def _growth(component: Mapping[str, Any]) -> float:
    """Bound the factor by which a replacement in the file multiplies the length of a text.

    The library's own components, such as NFKD, are bounded by Unicode and not counted.
    """
    if component["type"] == "Prepend":
        return 1.0 + len(component.get("prepend", "")) / 32
    if component["type"] != "Replace":
        return 1.0
    pattern = component.get("pattern", {})
    # A regular expression matches at least one character.
    return max(1.0, len(component.get("content", "")) / len(pattern.get("String", "x")))


def _small(place: str, value: Any) -> None:
    """Refuse large or deep values, as the library copies them at every level."""
    count, layer = 0, [value]
    for _ in range(10):
        if not layer:
            return
        count += len(layer)
        below: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and len(one) > 100_000:
                raise _RefusedError(place, "at most 100000 characters", one)
            if len(below) > _MOST_VALUES:
                break
        layer = below
        if count + len(layer) > _MOST_VALUES:
            break
    raise _RefusedError(place, f"at most {_MOST_VALUES} values, 9 deep", value)


def _template(place: str, value: Any, texts: str) -> None:
    """Check a template: special tokens, and each text exactly once, in their order."""
    if not isinstance(value, list) or len(value) > _MOST_PIECES:
        raise _RefusedError(place, f"a list of at most {_MOST_PIECES} pieces", value)
    found = ""
    for number, piece in enumerate(value):
        here = f"{place}.{number}"
        ((kind, content),) = (
            piece.items() if isinstance(piece, dict) and len(piece) == 1 else [("", 0)]
        )
        if kind not in ("SpecialToken", "Sequence") or not isinstance(content, dict):
            raise _RefusedError(here, "a SpecialToken or a Sequence", piece)
        _text(1)(f"{here}.id", content.get("id"))
        _number(0, (1 << 31) - 1)(f"{here}.type_id", content.get("type_id"))
        if kind == "Sequence":
            found += content["id"]
    if found != texts:
        raise _RefusedError(place, f"the texts {', '.join(texts)}, each once", found)


def _template_agrees(place: str, value: Mapping[str, Any]) -> None:
    """Refuse templates with missing parts, and special tokens that have no ids."""
    for key in ("single", "pair"):
        for piece in value.get(key) or [{}]:
            if not piece:
                raise _RefusedError(f"{place}.{key}", "a template", value.get(key))
            name = piece.get("SpecialToken", {}).get("id")
            if name is not None and name not in value.get("special_tokens", {}):
                raise _RefusedError(f"{place}.special_tokens", f"the token {name!r}", "none")


def _added(tokens: Any) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, list) or len(tokens) > _MOST_ADDED:
        raise _RefusedError("added_tokens", f"a list of at most {_MOST_ADDED} tokens", tokens)
    for number, token in enumerate(tokens):
        place = f"added_tokens.{number}"
        if not isinstance(token, dict):
            raise _RefusedError(place, "a JSON object", token)
        _text(1)(f"{place}.content", token.get("content"))
        _number(0, (1 << 31) - 1)(f"{place}.id", token.get("id"))
        for key in ("single_word", "lstrip", "rstrip", "normalized", "special"):
            _whether(f"{place}.{key}", token.get(key))
        if token["content"].isspace() and (token["lstrip"] or token["rstrip"]):
            # Two such tokens may claim the same space, which makes the library panic.
            raise _RefusedError(place, "white space without lstrip and rstrip", token)


def _model(model: Mapping[str, Any]) -> None:
    """Check the model's settings, its vocabulary and its merges."""
    # Files of the library's first versions do not name the type.
    name = model.get("type")
    vocabulary: Any = model.get("vocab")
    if name is None:
        named = {"merges": "BPE", "max_input_chars_per_word": "WordPiece", "unk_id": "Unigram"}
        name = next((one for key, one in named.items() if key in model), "WordLevel")
    if not isinstance(name, str) or name not in _MODELS:
        raise _RefusedError("model.type", f"one of {', '.join(_MODELS)}", name)
    for key, value in model.items():
        if key in _MODELS[name]:
            _MODELS[name][key](f"model.{key}", value)
        elif key not in ("type", "vocab", "merges", "dropout"):
            _small(f"model.{key}", value)
    if model.get("dropout") not in (None, 0):
        raise _RefusedError("model.dropout", "none: tokens would be random", model["dropout"])
    if name == "Unigram":
        _check_pieces(vocabulary)
        unknown = model.get("unk_id")
        if unknown is not None and unknown >= len(vocabulary):
            raise _RefusedError("model.unk_id", f"0..{len(vocabulary) - 1}", unknown)
    else:
        check_vocabulary(vocabulary, "model.vocab")
    if name == "BPE":
        _check_merges(model.get("merges"), model.get("continuing_subword_prefix") or "")


def check_vocabulary(vocabulary: Any, place: str) -> None:
    """Check a mapping of tokens to ids; raise :class:`ValueError` naming ``place``."""
    if not isinstance(vocabulary, dict):
        raise _RefusedError(place, "ids by token, a JSON object", vocabulary)
    if not vocabulary:
        raise _RefusedError(place, "at least one token", vocabulary)
    if set(map(type, vocabulary.values())) != {int}:
        wrong = next(one for one in vocabulary.items() if type(one[1]) is not int)
        raise _RefusedError(f"{place}.{wrong[0]}", "an id, a whole number", wrong[1])
    if min(vocabulary.values()) < 0 or max(vocabulary.values()) >= 1 << 31:
        wrong = next(one for one in vocabulary.items() if not 0 <= one[1] < 1 << 31)
        raise _RefusedError(f"{place}.{wrong[0]}", f"an id of 0..{(1 << 31) - 1}", wrong[1])


def _check_pieces(pieces: Any) -> None:
    """Check Unigram's pieces and their scores."""
    if not isinstance(pieces, list) or not pieces:
        raise _RefusedError("model.vocab", "a list of pieces and scores", pieces)
    try:
        names, scores = zip(*pieces, strict=True)
    except (TypeError, ValueError):
        raise _RefusedError("model.vocab", "a list of pieces and scores", pieces) from None
    kinds = set(map(type, scores))
    if not kinds <= {int, float}:
        raise _RefusedError("model.vocab", "scores that are numbers", kinds - {int, float})
    if min(scores) < -_LARGEST_SCORE or max(scores) > _LARGEST_SCORE:
        raise _RefusedError(
            "model.vocab", f"scores within {_LARGEST_SCORE:g}", [min(scores), max(scores)]
        )
    if set(map(type, names)) != {str} or "" in names:
        raise _RefusedError("model.vocab", "pieces of at least one character", "another")
    if max(map(len, names)) > _LONGEST:
        raise _RefusedError(
            "model.vocab", f"pieces of at most {_LONGEST} characters", "a longer one"
        )


def _check_merges(merges: Any, prefix: str) -> None:
    """Refuse merges whose second part lacks the prefix that the library cuts off."""
    if not isinstance(merges, list):
        raise _RefusedError("model.merges", "a list", merges)
    if not prefix:
        return
    for number, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (
            isinstance(parts, list)
            and len(parts) == 2
            and all(isinstance(part, str) for part in parts)
            and parts[1].startswith(prefix)
        ):
            expected = f"two tokens, the second beginning with {prefix!r}"
            raise _RefusedError(f"model.merges.{number}", expected, merge)


# The class


def check_class(
    raw: Mapping[str, Any],
    model: str,
    tokens: Mapping[str, str | None],
    first: Sequence[Mapping[str, Any]] | None = None,
    two_separators: bool = False,
) -> None:
    """Check that a ``tokenizer.json`` equals the tokenizer that its class builds.

    The class builds it from the vocabulary. Version 4 of transformers uses the file's
    components, version 5 the class's own.

    Parameters
    ----------
    raw : mapping
        A description that :func:`check_description` accepts.
    model : str
        The model of the class: "WordPiece", "BPE" or "Unigram".
    tokens : mapping of str to str
        The special tokens by their keys: ``cls_token`` and so on.
    first : sequence of mapping, optional
        ALBERT's normalizers, which precede those of other Unigram classes; None for others.
    two_separators : bool
        True if there are two separators between the texts of a pair.

    Raises
    ------
    ValueError
        If the two differ. The message names the key, the value expected and the value found.
    """
    found = raw["model"]
    if found.get("type", model) != model:
        raise _RefusedError("model.type", f"{model}, the model of the class", found["type"])
    for key, value in _OWN_MODELS[model].items():
        if (found.get(key) or value) != value:
            raise _RefusedError(f"model.{key}", f"{value!r}, as the class has it", found[key])
    if model == "WordPiece" and found.get("unk_token") != tokens["unk_token"]:
        raise _RefusedError(
            "model.unk_token", f"{tokens['unk_token']!r} (unk_token)", found.get("unk_token")
        )
    if model == "Unigram":
        unknown = found.get("unk_id")
        if unknown is None or found["vocab"][unknown][0] != tokens["unk_token"]:
            raise _RefusedError("model.unk_id", f"the id of {tokens['unk_token']!r}", unknown)
    _check_parts(raw if first is None else _without(raw, first), model)
    _check_post_processor(raw.get("post_processor"), model, tokens, two_separators)


def _without(raw: Mapping[str, Any], first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Check that the normalizer is ALBERT's, and remove it from a description."""
    parts = (raw.get("normalizer") or {}).get(_LISTS["normalizer"], [])
    rest = parts[len(first) :]
    if rest[-1:] == [_ONE_SPACE]:  # as version 4 writes it; words are split at spaces anyway
        rest = rest[:-1]
    if parts[: len(first)] != first or [part["type"] for part in rest] not in ([], ["Precompiled"]):
        names = ", ".join(str(part["type"]) for part in (*first, {"type": "Precompiled"}))
        expected = f"{names}, as the class and its keys have it"
        raise _RefusedError("normalizer", expected, raw.get("normalizer"))
    return {**raw, "normalizer": None}


def _check_parts(raw: Mapping[str, Any], model: str) -> None:
    """Refuse a normalizer or a pre-tokenizer that the class does not have."""
    names: tuple[str, ...] = ()
    for kind in ("normalizer", "pre_tokenizer"):
        parts = [] if raw.get(kind) is None else list(_flat(kind, kind, raw[kind]))
        names = tuple(part["type"] for part in parts)
        if names not in _OWN_PARTS[model][kind]:
            allowed = " or ".join(" and ".join(one) or "none" for one in _OWN_PARTS[model][kind])
            raise _RefusedError(kind, f"{allowed}, as the class has it", raw.get(kind))
        for part in parts:
            for key, value in _OWN_VALUES.get(part["type"], {}).items():
                if part.get(key, value) not in (value, *_ALSO.get(key, ())):
                    raise _RefusedError(f"{kind}.{key}", f"{value!r}", part[key])
    normalizer = raw.get("normalizer")
    if model == "Unigram" and normalizer is not None:
        for number, part in enumerate(normalizer.get(_LISTS["normalizer"], [])):
            if part["type"] == "Sequence":  # version 5 does not look into it
                place = f"normalizer.normalizers.{number}.type"
                raise _RefusedError(place, "no Sequence in a Sequence", part["type"])
    if model == "Unigram" and names == ("Metaspace",):
        kinds = [] if normalizer is None else list(_flat("normalizer", "normalizer", normalizer))
        if [part["type"] for part in kinds] != ["Precompiled", "Strip", "Replace"]:
            raise _RefusedError(
                "pre_tokenizer", "WhitespaceSplit and Metaspace", raw["pre_tokenizer"]
            )


#: Values of a model that its class prescribes.
_OWN_MODELS: dict[str, dict[str, Any]] = {
    "WordPiece": {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    "BPE": {
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    },
    "Unigram": {"byte_fallback": False},
}

#: The components of each class in their order; transformers 4 has written several variants.
_OWN_PARTS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "WordPiece": {"normalizer": (("BertNormalizer",),), "pre_tokenizer": (("BertPreTokenizer",),)},
    "BPE": {"normalizer": ((),), "pre_tokenizer": (("ByteLevel",),)},
    "Unigram": {
        "normalizer": (
            ("Precompiled",),
            ("Precompiled", "Replace"),
            ("Precompiled", "Strip", "Replace"),
            (),
        ),
        "pre_tokenizer": (("WhitespaceSplit", "Metaspace"), ("Metaspace",)),
    },
}

_OWN_VALUES: dict[str, dict[str, Any]] = {
    "BertNormalizer": {"clean_text": True},
    "ByteLevel": {"use_regex": True},
    "Metaspace": {"replacement": "\u2581", "prepend_scheme": "always", "split": True}
    | {"add_prefix_space": True},
    "Strip": {"strip_left": False, "strip_right": True},
    "Replace": {"pattern": {"Regex": " {2,}"}, "content": "\u2581"},
}

_ALSO = {"content": (" ",)}

_ONE_SPACE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


def _check_post_processor(
    value: Any, model: str, tokens: Mapping[str, str | None], two_separators: bool
) -> None:
    """Refuse all but [CLS] first [SEP] second [SEP], or RoBERTa's with two separators."""
    cls, sep = tokens["cls_token"], tokens["sep_token"]
    if model == "Unigram" and (tokens["bos_token"], tokens["eos_token"]) != (cls, sep):
        raise _RefusedError("post_processor", "cls_token and sep_token as bos and eos", [cls, sep])
    single = [(cls, 0), ("$A", 0), (sep, 0)]
    second = [(sep, 0), ("$B", 0), (sep, 0)] if two_separators else [("$B", 1), (sep, 1)]
    pair = [*single, *second]
    parts = [] if value is None else list(_flat("post_processor", "post_processor", value))
    found = next((part for part in parts if part["type"] != "ByteLevel"), None)
    own = "RobertaProcessing" if two_separators else "BertProcessing"
    if found is not None and found["type"] == own:
        right = (found["cls"][0], found["sep"][0]) == (cls, sep)
    elif found is not None and found["type"] == "TemplateProcessing":
        templates = [_pieces_of(found[key]) for key in ("single", "pair")]
        if two_separators:  # such models have no token types
            templates = [[(name, 0) for name, _ in one] for one in templates]
        right = templates == [single, pair]
    else:
        right = False
    if not right:
        shown = " ".join(f"{name}" for name, _ in pair)
        raise _RefusedError(
            "post_processor", f"{shown} (cls_token and sep_token), as the class has it", value
        )


def _pieces_of(template: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """List a template's pieces and their types; the names of texts begin with a dollar sign."""
    found = []
    for piece in template:
        ((kind, content),) = piece.items()
        name = f"${content['id']}" if kind == "Sequence" else content["id"]
        found.append((name, content["type_id"]))
    return found


def special_ids(raw: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the tokens that a description's post-processor adds, each with its id there."""
    value = raw.get("post_processor")
    for part in [] if value is None else _flat("post_processor", "post_processor", value):
        for key in ("cls", "sep"):
            if key in part:
                yield part[key][0], part[key][1]
        for token in part.get("special_tokens", {}).values():
            yield from zip(token["tokens"], token["ids"], strict=True)
