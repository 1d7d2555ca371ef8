"""The ``tokenizers`` object of a folder: its vocabulary, with the other files' settings applied."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors

from bert_numpy.errors import BertNumpyError, one_line, read_json
from bert_numpy.tasks.tokenizer_check import (
    check_class,
    check_description,
    check_vocabulary,
    special_ids,
)
from bert_numpy.tasks.tokenizer_settings import CONFIG, FLAGS, NAMED, TokenizerSettings
from npfp8.files import open_regular

__all__ = ["build_backend", "library_errors"]

#: The most bytes of a tokenizer's file. With more, the library may run out of memory, which ends
#: the process.
_LARGEST_FILE = 1 << 28

#: The most lists, objects and commas in a tokenizer.json: each may take a hundred bytes in memory.
#: A vocabulary of 250,000 tokens with as many merges has two million.
_MOST_PARTS = 5_000_000

_JSON = "tokenizer.json"

#: The keys that replace the normalizer of BERT's classes.
_NORMALIZING = ("do_basic_tokenize", "do_lower_case", "strip_accents", "tokenize_chinese_chars")

#: A letter in few vocabularies: the library fails at it if there is no unknown token.
_RARE = "\u13a0"


@contextmanager
def library_errors(prefix: str) -> Iterator[None]:
    """Turn every error of the library into :class:`BertNumpyError`.

    Its own errors are plain ``Exception``; a panic of its Rust code derives only from
    ``BaseException``.
    """
    try:
        yield
    except BertNumpyError:
        raise
    except Exception as error:
        raise BertNumpyError(f"{prefix}{one_line(error)}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BertNumpyError(f"{prefix}{one_line(error)}") from None


def build_backend(settings: TokenizerSettings, vocab_size: int) -> tuple[Any, str]:
    """Build a folder's tokenizer by the library, without truncation and padding.

    Parameters
    ----------
    settings : TokenizerSettings
    vocab_size : int
        The value in ``config.json``: the rows of the model's embeddings.

    Returns
    -------
    backend : tokenizers.Tokenizer
        It adds the special tokens, and neither truncates nor pads. Its offsets are not
        trimmed.
    truncation_side : str
        "right" or "left".

    Raises
    ------
    BertNumpyError
        If a file is missing, damaged or hostile, if its vocabulary is larger than the model's,
        or if it contradicts the settings.
    """
    folder, kind = settings.folder, settings.kind
    serialized = (folder / _JSON).is_file()
    if not serialized and not kind.vocabulary:
        raise BertNumpyError(
            f"{folder}: expected {_JSON}, without which {settings.name} cannot be built, found none"
        )
    path = folder / (_JSON if serialized else kind.vocabulary[0])
    if not path.is_file():
        raise BertNumpyError(
            f"{folder}: expected {_JSON} or {path.name}, from which {settings.name} is built, "
            "found neither"
        )
    if (length := path.stat().st_size) > _LARGEST_FILE:
        raise BertNumpyError(f"{path}: expected at most {_LARGEST_FILE} bytes, found {length}")
    side = settings.truncation_side
    loaded: dict[str, Any] = {}
    with library_errors(f"{path}: expected a tokenizer, found an error: "):
        if serialized:
            backend, loaded = _from_json(path, settings, vocab_size)
            side = side or str((loaded.get("truncation") or {}).get("direction", "")).lower()
        elif path.name == "vocab.txt":
            backend = _from_vocabulary(path, settings, vocab_size)
        else:
            backend = _from_merges(path, settings, vocab_size)
        _add_tokens(backend, settings, loaded)
        _set_components(backend, settings)
        if not serialized:
            backend.post_processor = _own_post_processor(settings, backend)
        _untrimmed(backend)
        backend.encode(_RARE)
    return backend, side or "right"


def _from_json(path: Path, settings: TokenizerSettings, vocab_size: int) -> tuple[Any, Any]:
    """Check and load a tokenizer.json; return the tokenizer and the file's JSON object."""
    data = _read(path)
    if (parts := sum(map(data.count, (b"[", b"{", b",")))) > _MOST_PARTS:
        raise ValueError(f"expected at most {_MOST_PARTS} values, found {parts}")
    try:
        raw = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(raw, dict):
        raise ValueError(f"expected a JSON object, found {type(raw).__name__}")
    check_description(raw)
    _check_contradictions(raw, settings)
    backend = tokenizers.Tokenizer.from_buffer(data)
    backend.no_padding()
    backend.no_truncation()
    if settings.kind.model == "Unigram" and settings.explicit and not settings.kind.normalizes:
        # These are the class's own components; versions of transformers write variants of them.
        backend.normalizer = _map_of_characters(raw.get("normalizer"))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
    _check_size(path, backend.get_vocab_size(), vocab_size)
    if isinstance(raw["model"]["vocab"], dict):
        _check_ids(path, raw["model"]["vocab"], vocab_size)
    for token in raw.get("added_tokens") or []:
        found = backend.token_to_id(token["content"])
        if found != token["id"]:
            raise ValueError(
                f"key 'added_tokens': expected the id {found} for {token['content']!r}, "
                f"found {token['id']}"
            )
    for token, number in special_ids(raw):
        if (found := backend.token_to_id(token)) != number:
            raise ValueError(
                f"key 'post_processor': expected the id {found} for {token!r}, found {number}"
            )
    return backend, raw


def _map_of_characters(normalizer: Any) -> Any:
    """Make SentencePiece's map alone from a normalizer that :func:`check_class` accepts."""
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    for part in parts:
        if part["type"] == "Precompiled":
            return normalizers.Precompiled(base64.b64decode(part["precompiled_charsmap"]))
    return None


def _no_number(text: str) -> None:
    raise ValueError(f"expected numbers, found {text}")


def _check_contradictions(raw: dict[str, Any], settings: TokenizerSettings) -> None:
    """Refuse settings that versions 4 and 5 of transformers read differently, or not at all."""
    model, normalizes = settings.kind.model, settings.kind.normalizes
    if not model or not (settings.explicit or model == "WordPiece" or normalizes):
        return  # the file is alone, or its class uses it unchanged
    names = [key for key in NAMED if key.endswith("_token")]
    tokens = {key: settings.text(key) for key in names}
    check_class(raw, model, tokens, settings.normalizers, settings.kind.two_separators)
    if settings.kind.keeps_chinese:
        key, own_value = "tokenize_chinese_chars", raw["normalizer"].get("handle_chinese_chars")
        if (found := settings.values.get(key, True)) != own_value:
            raise settings.refusal(key, f"{own_value}, as in {_JSON}", found)
    own, unknown = settings.kind.unknown, raw["model"].get("unk_id")
    if own is not None and unknown != own:
        raise ValueError(
            f"key 'model.unk_id': expected {own}, as {settings.name} has it, found {unknown}"
        )
    if model == "Unigram" and not settings.values.get("add_prefix_space", True):
        raise settings.refusal("add_prefix_space", "true, or no such key", False)
    if "added_tokens_decoder" in settings.values:
        known = {token.content for _, _, token in settings.added}
        known |= {str(settings.text(key)) for key in names}
        for token in raw.get("added_tokens") or []:
            if token["content"] not in known:
                expected = f"the added token {token['content']!r} of {_JSON}"
                raise settings.refusal("added_tokens_decoder", expected, None)


def _check_size(path: Path, size: int, vocab_size: int) -> None:
    if size > vocab_size:
        raise BertNumpyError(
            f"{path}: expected at most {vocab_size} tokens (vocab_size in config.json), "
            f"found {size}"
        )


def _check_ids(path: Path, vocabulary: dict[str, int], vocab_size: int) -> None:
    if (largest := max(vocabulary.values())) >= vocab_size:
        token = next(token for token, number in vocabulary.items() if number == largest)
        raise BertNumpyError(
            f"{path}: expected ids below {vocab_size} (vocab_size in config.json), found "
            f"{largest} for {token!r}"
        )


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_LARGEST_FILE)


def _from_vocabulary(path: Path, settings: TokenizerSettings, vocab_size: int) -> Any:
    """Build BERT's WordPiece: one token per line, whose id is the line's number from 0."""
    text = _read(path).decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("expected text without a byte order mark, found one")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    _check_size(path, len(lines), vocab_size)
    vocabulary = {token: number for number, token in enumerate(lines)}
    if not vocabulary:
        raise ValueError("expected one token a line, found none")
    _check_named(vocabulary, settings)
    unknown = settings.text("unk_token")
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=unknown))
    normal = _normalizer_settings(settings)
    if not settings.values.get("do_basic_tokenize", True):
        if settings.kind.keeps_chinese:
            raise settings.refusal("do_basic_tokenize", "true, or no such key", False)
        # transformers begins so, and finds the added tokens, before it applies the keys.
        normal |= {"lowercase": False, "strip_accents": False, "handle_chinese_chars": False}
    backend.normalizer = normalizers.BertNormalizer(**normal)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _from_merges(path: Path, settings: TokenizerSettings, vocab_size: int) -> Any:
    """Build RoBERTa's byte-level BPE from vocab.json and merges.txt."""
    vocabulary = read_json(path)
    check_vocabulary(vocabulary, "vocab")
    _check_size(path, len(vocabulary), vocab_size)
    _check_ids(path, vocabulary, vocab_size)
    other = path.with_name("merges.txt")
    if not other.is_file():
        raise ValueError(f"expected {other.name} beside it, found none")
    if (length := other.stat().st_size) > _LARGEST_FILE:
        raise ValueError(f"{other}: expected at most {_LARGEST_FILE} bytes, found {length}")
    text = _read(other).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[0].startswith("#version") or lines[-1]:
        # Version 4 drops the first and the last line, whatever they contain.
        raise ValueError(f"{other}: expected a first line '#version', and a last one that ends")
    lines = lines[1:-1]
    merges: list[Any] = list(dict.fromkeys(tuple(line.split()) for line in lines))
    for number, merge in enumerate(merges, 2):
        if len(merge) != 2:
            raise ValueError(f"{other}: expected two tokens a line, found {merge!r} ({number})")
    _check_named(vocabulary, settings)
    model = tokenizers.models.BPE(
        vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=""
    )
    backend = tokenizers.Tokenizer(model)
    spaced = bool(settings.values.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    return backend


def _check_named(vocabulary: dict[str, int], settings: TokenizerSettings) -> None:
    """Refuse a vocabulary without the tokens that every input needs."""
    known = {token.content for _, _, token in settings.added}
    for key in ("unk_token", "cls_token", "sep_token"):
        token = settings.text(key)
        if token is None:
            raise settings.refusal(key, "a token", None)
        # WordPiece searches only its own vocabulary for the unknown token.
        if token not in vocabulary and (key == "unk_token" or token not in known):
            raise ValueError(f"expected the token {token!r} ({key}), found none")


def _add_tokens(backend: Any, settings: TokenizerSettings, loaded: dict[str, Any]) -> None:
    """Add the tokens of the side files, then the special tokens that are not yet added.

    The order, and the precedence of flags, are those of transformers.
    """
    by_id = {number: token for _, number, token in settings.added}
    if "added_tokens_decoder" not in settings.values:
        for one in loaded.get("added_tokens") or []:
            flags = {key: one[key] for key in FLAGS}
            by_id[one["id"]] = AddedToken(one["content"], **flags)
    tokens = [by_id[number] for number in sorted(by_id)]
    by_name = {token.content: token for token in tokens}
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | set(by_name)
    special = _special_tokens(settings, by_name, loaded)
    for content, token in special.items():
        if content not in known:
            tokens.append(_as_special(token))
    for token in tokens:
        if token.content in special:
            token.special = True  # it stays normalized only if a file demands it
    backend.add_tokens(tokens)
    for file, number, token in settings.added:
        found = backend.token_to_id(token.content)
        if found != number:
            key = "added_tokens_decoder" if file == CONFIG else token.content
            raise settings.refusal(key, f"the id {found} for {token.content!r}", number, file)


def _special_tokens(
    settings: TokenizerSettings, by_name: dict[str, Any], loaded: dict[str, Any]
) -> dict[str, Any]:
    """List all special tokens by their text, as str or AddedToken, in the order of adding."""
    groups: list[Any] = []
    extra = settings.values.get("extra_special_tokens") or []
    for key in NAMED:
        if key == "additional_special_tokens" and isinstance(extra, dict):
            groups += extra.values()
        token = settings.token(key)
        if key == "pad_token" and key not in {**settings.values, **settings.kind.tokens}:
            token = (loaded.get("padding") or {}).get("pad_token")
        if isinstance(token, list):
            groups += token
            continue
        if key in settings.values and token is not None:
            token = by_name.get(settings.text(key) or "", token)
        if isinstance(token, str) and key == "mask_token" and not loaded:
            token = AddedToken(token, **settings.kind.mask)
        groups.append(token)
    groups += [] if isinstance(extra, dict) else extra
    found: dict[str, Any] = {}
    for token in groups:
        if token is None:
            continue
        content = str(getattr(token, "content", token))
        former = found.setdefault(content, token)
        if content not in by_name and repr(_as_special(former)) != repr(_as_special(token)):
            raise ValueError(f"expected one set of flags for the special token {content!r}")
    return found


def _as_special(token: Any) -> Any:
    return AddedToken(token, special=True) if isinstance(token, str) else token


def _set_components(backend: Any, settings: TokenizerSettings) -> None:
    """Apply the keys that replace settings of the library's components."""
    before = backend.pre_tokenizer
    state = json.loads(before.__getstate__()) if before is not None else {}
    spaced = settings.values.get("add_prefix_space", False)
    if settings.explicit and state.get("add_prefix_space", spaced) != spaced:
        if not settings.kind.model:  # version 4 changes it, version 5 does not
            found = settings.values.get("add_prefix_space")
            raise settings.refusal("add_prefix_space", f"{not spaced}, as in {_JSON}", found)
        if state["type"] == "ByteLevel":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(
                add_prefix_space=spaced, use_regex=state.get("use_regex", True)
            )
    if settings.kind.model != "WordPiece" or backend.normalizer is None:
        _check_normalized(backend, settings, backend.normalizer)
        return
    normalizer = normalizers.BertNormalizer(**_normalizer_settings(settings))
    _check_normalized(backend, settings, normalizer)
    backend.normalizer = normalizer


def _normalizer_settings(settings: TokenizerSettings) -> dict[str, Any]:
    values = settings.values
    return {
        "lowercase": values.get("do_lower_case", True),
        "strip_accents": values.get("strip_accents"),
        "handle_chinese_chars": values.get("tokenize_chinese_chars", True),
        "clean_text": True,
    }


def _check_normalized(backend: Any, settings: TokenizerSettings, normalizer: Any) -> None:
    """Refuse added tokens that the normalizer deletes, or that its replacement changes.

    The library would find a deleted token everywhere. It would find a changed one or not,
    depending on whether the tokenizer has been copied.
    """
    for token in backend.get_added_tokens_decoder().values():
        if not token.normalized or normalizer is None:
            continue
        found = normalizer.normalize_str(token.content)
        if not found:
            raise ValueError(f"expected added tokens of visible text, found {token.content!r}")
        if found != (former := backend.normalizer.normalize_str(token.content)):
            key = next((one for one in _NORMALIZING if one in settings.values), "do_lower_case")
            expected = f"a value that leaves the added token {token.content!r} as {former!r}"
            raise settings.refusal(key, expected, settings.values.get(key))


def _own_post_processor(settings: TokenizerSettings, backend: Any) -> Any:
    """Make the post-processor of the class: [CLS] first [SEP] second [SEP], or RoBERTa's."""
    tokens = [str(settings.text(key)) for key in ("sep_token", "cls_token")]
    sep, cls = ((token, backend.token_to_id(token)) for token in tokens)
    if settings.kind.two_separators:
        return processors.RobertaProcessing(sep, cls)
    return processors.BertProcessing(sep, cls)


def _untrimmed(backend: Any) -> None:
    """Make the library keep spaces in the offsets.

    It trims one character per leading space of a token, even if the tokenizer inserted the
    space. A word would then lose its first letter.
    """
    if backend.post_processor is None:
        return
    state = json.loads(backend.post_processor.__getstate__())
    changed = _without_trimming(state)
    if changed != state:
        raw = json.loads(tokenizers.Tokenizer(tokenizers.models.WordLevel({}, "")).to_str())
        text = json.dumps({**raw, "post_processor": changed})
        backend.post_processor = tokenizers.Tokenizer.from_str(text).post_processor


def _without_trimming(state: Any) -> Any:
    if isinstance(state, list):
        return [_without_trimming(part) for part in state]
    if isinstance(state, dict):
        parts = {key: _without_trimming(part) for key, part in state.items()}
        return {**parts, "trim_offsets": False} if "trim_offsets" in parts else parts
    return state
