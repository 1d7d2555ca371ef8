"""The settings of a tokenizer's side files, read as transformers' ``AutoTokenizer`` reads them.

``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json`` are
beside a vocabulary, and ``sentence_bert_config.json`` is in a sentence-transformers folder.
Every key that changes an id is applied, or refused by its name; docs/tokenizer-keys.md has
the table. The behaviour is that of transformers 5 (5.24), which builds the tokenizer of a
class anew from the vocabulary, while version 4 (4.57) modifies that of ``tokenizer.json``.
Settings that give different ids in the two versions are refused, since a folder does not
show for which version it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from bert_numpy.errors import BertNumpyError, read_json

__all__ = ["Sentences", "TokenizerClass", "TokenizerSettings", "read_settings"]

CONFIG = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"

#: The special tokens that have a name, in the order in which they are added.
NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
)

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

#: The most added tokens, and the most characters of one.
MOST_TOKENS = 10_000
LONGEST_TOKEN = 1_000

_SHORTEST = 3

#: Keys that are true or false.
_SWITCHES = (
    *("do_lower_case", "tokenize_chinese_chars", "add_prefix_space", "trim_offsets"),
    "keep_accents",
)


@dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class of transformers.

    Attributes
    ----------
    vocabulary : tuple of str
        The files from which the class builds a tokenizer without ``tokenizer.json``; none
        for classes that need it.
    tokens : mapping of str to str
        The default special tokens of the class.
    mask : mapping of str to bool
        The flags of the mask token if there is no ``tokenizer.json``, and if a file gives the
        token as text or no file gives it.
    model : str
        The only model of the class: "WordPiece", "BPE" or "Unigram"; empty for any.
    token_types : bool, optional
        True if the class gives token types to the model; None if versions 4 and 5 differ.
    unknown : int, optional
        The id of the unknown token, if version 5 prescribes it regardless of the file.
    normalizes : bool
        True if the class first changes quotes, accents and case, as its keys demand.
    two_separators : bool
        True if there are two separators between the texts of a pair (RoBERTa).
    keeps_chinese : bool
        True if version 4 splits Chinese characters by ``tokenizer.json`` and not by
        ``tokenize_chinese_chars``.
    """

    vocabulary: tuple[str, ...] = ()
    tokens: Mapping[str, Any] = field(default_factory=dict)
    mask: Mapping[str, bool] = field(default_factory=lambda: {"special": True})
    model: str = ""
    token_types: bool | None = False
    unknown: int | None = None
    normalizes: bool = False
    two_separators: bool = False
    keeps_chinese: bool = False


_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}

_BERT = TokenizerClass(("vocab.txt",), _BERT_TOKENS, model="WordPiece", token_types=True)

#: The classes by the name in ``tokenizer_class``, without "Fast" at its end.
_CLASSES = {
    "BertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "DistilBertTokenizer": TokenizerClass(("vocab.txt",), _BERT_TOKENS, model="WordPiece"),
    "RobertaTokenizer": TokenizerClass(
        ("vocab.json", "merges.txt"),
        _ROBERTA_TOKENS,
        {"lstrip": True, "normalized": False, "special": True},
        "BPE",
        two_separators=True,
    ),
    "MPNetTokenizer": TokenizerClass(
        ("vocab.txt",),
        _ROBERTA_TOKENS | {"unk_token": "[UNK]"},
        {"lstrip": True, "special": True},
        "WordPiece",
        two_separators=True,
        keeps_chinese=True,
    ),
    "XLMRobertaTokenizer": TokenizerClass(
        (), _ROBERTA_TOKENS, model="Unigram", unknown=3, two_separators=True
    ),
    "CamembertTokenizer": TokenizerClass(
        (),
        _ROBERTA_TOKENS
        | {"additional_special_tokens": ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]},
        model="Unigram",
        two_separators=True,
    ),
    "AlbertTokenizer": TokenizerClass(
        (),
        _BERT_TOKENS
        | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
        model="Unigram",
        token_types=None,
        unknown=1,
        normalizes=True,
    ),
    # The generic class for any tokenizer.json, and its name since version 5.
    "PreTrainedTokenizer": TokenizerClass(token_types=None),
    "TokenizersBackend": TokenizerClass(),
}

_OF_MODEL = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "electra": "ElectraTokenizer",
    "albert": "AlbertTokenizer",
    "mpnet": "MPNetTokenizer",
}

#: Keys that must be absent or have this one value. Another value changes the ids
#: in a way that is not supported, or is read differently by versions 4 and 5.
_ONLY = {
    "padding_side": "right",
    "from_slow": False,
    "split_special_tokens": False,
    "add_bos_token": False,
    "add_eos_token": False,
    "init_inputs": [],
    "fast_tokenizer_files": ["tokenizer.json"],
    "gguf_file": None,
}


@dataclass(frozen=True)
class Sentences:
    """The changes that sentence-transformers makes to a text before its tokenizer sees it.

    Every text loses the white space around it and is truncated to ``max_length`` tokens (None
    for the model's limit). If ``lowercase`` is true, ``str.lower`` is applied.
    """

    lowercase: bool = False
    max_length: int | None = None

    def prepared(self, text: str) -> str:
        """Return the text that the tokenizer gets."""
        text = text.strip()
        return text.lower() if self.lowercase else text


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of a tokenizer beside its vocabulary.

    Attributes
    ----------
    folder : Path
    name : str
        The tokenizer class, without "Fast".
    explicit : bool
        True if there is a side file, or if ``config.json`` names the class. Otherwise a
        ``tokenizer.json`` is alone, and nothing contradicts it.
    values : mapping of str to Any
        The keys of all files together, as the class gets them.
    added : tuple of (str, int, AddedToken)
        The tokens added to the vocabulary: the file, the id, and the token; sorted by id.
    model_max_length : int, optional
        The longest input that the tokenizer's files allow.
    truncation_side : str
        "right" or "left"; empty if no file names it.
    token_types : bool, optional
        True if token types are given to the model; None if versions 4 and 5 differ.
    sentences : Sentences, optional
        None outside a sentence-transformers folder.
    """

    folder: Path
    name: str
    explicit: bool
    values: Mapping[str, Any]
    added: tuple[tuple[str, int, Any], ...]
    model_max_length: int | None
    truncation_side: str
    token_types: bool | None
    sentences: Sentences | None

    @property
    def kind(self) -> TokenizerClass:
        """The properties of the class."""
        return _CLASSES[self.name]

    def token(self, key: str) -> Any:
        """Return a special token by its key, as str or AddedToken; None if it is not named."""
        return self.values.get(key, self.kind.tokens.get(key))

    @property
    def normalizers(self) -> list[dict[str, Any]] | None:
        """The first normalizers of ALBERT's class, as in ``tokenizer.json``; None for others."""
        if not self.kind.normalizes:
            return None
        quotes = [
            {"type": "Replace", "pattern": {"String": quote}, "content": '"'}
            for quote in ("``", "''")
        ]
        accents = [] if self.values.get("keep_accents", False) else ["NFKD", "StripAccents"]
        case = ["Lowercase"] if self.values.get("do_lower_case", True) else []
        return [*quotes, *({"type": name} for name in (*accents, *case))]

    def text(self, key: str) -> str | None:
        """Return the characters of a special token."""
        token = self.token(key)
        return getattr(token, "content", token)

    def refusal(self, key: str, expected: str, found: Any, file: str = CONFIG) -> BertNumpyError:
        """Make the error for a key of a file."""
        shown = "nothing" if found is None else repr(found)
        return BertNumpyError(
            f"{self.folder / file}: key {key!r}: expected {expected}, found {shown}"
        )


def read_settings(folder: Path, model_type: str) -> TokenizerSettings:
    """Read the side files of a folder's tokenizer.

    Parameters
    ----------
    folder : Path
    model_type : str
        The value in ``config.json``: it decides the class if no other key does.

    Raises
    ------
    BertNumpyError
        If a file is not JSON, or a key has a value that is not supported.
    """
    path = folder / CONFIG
    raw: dict[str, Any] = read_json(path) if path.is_file() else {}
    explicit = any((folder / name).is_file() for name in (CONFIG, _MAP, _ADDED))
    name, named = _class_name(folder, raw, model_type)
    for key, value in _ONLY.items():
        if raw.get(key) is not None and (
            raw[key] != value or isinstance(raw[key], bool) != isinstance(value, bool)
        ):
            raise _refusal(path, key, f"{value!r}, or no such key", raw[key])
    _check_files(path, raw, folder)
    if "added_tokens_decoder" in raw:
        added = _decoder(path, raw["added_tokens_decoder"])
        values = dict(raw)
    else:
        values = raw | _special_tokens_map(folder / _MAP, raw)
        added = _added_tokens(folder / _ADDED, values, raw)
    if len(added) > MOST_TOKENS:
        raise _refusal(path, "added_tokens_decoder", f"at most {MOST_TOKENS} tokens", len(added))
    _check_special(path, values)
    for key in _SWITCHES:
        if key in raw and not isinstance(raw[key], bool):
            raise _refusal(path, key, "true or false", raw[key])
    if not isinstance(raw.get("strip_accents"), (bool, type(None))):
        raise _refusal(path, "strip_accents", "true, false or null", raw["strip_accents"])
    side = raw.get("truncation_side", "")
    if side not in ("", "right", "left"):
        raise _refusal(path, "truncation_side", "'right' or 'left'", side)
    kind = _CLASSES[name]
    return TokenizerSettings(
        folder=folder,
        name=name,
        explicit=explicit or named,
        values=values,
        added=tuple(added),
        model_max_length=_longest(path, raw),
        truncation_side=side,
        token_types=_token_types(path, raw, kind),
        sentences=_sentences(folder),
    )


def _refusal(path: Path, key: str, expected: str, found: Any) -> BertNumpyError:
    shown = "null" if found is None else repr(found)
    return BertNumpyError(f"{path}: key {key!r}: expected {expected}, found {shown}")


def _class_name(folder: Path, raw: Mapping[str, Any], model_type: str) -> tuple[str, bool]:
    """Return the tokenizer class, without "Fast", and whether a file names it."""
    path, found = folder / CONFIG, raw.get("tokenizer_class")
    if found is None:
        path = folder / "config.json"
        found = read_json(path).get("tokenizer_class")
    if found is None:
        return _OF_MODEL[model_type], False
    if isinstance(found, str):
        name = found.removesuffix("Fast")
        if name in _CLASSES:
            return name, True
    known = ", ".join(_CLASSES).replace("PreTrainedTokenizer", "PreTrainedTokenizerFast")
    raise _refusal(path, "tokenizer_class", f"one of {known}", found)


def _check_files(path: Path, raw: Mapping[str, Any], folder: Path) -> None:
    """Refuse keys that send the reader to other files, or to code."""
    for key in ("tokenizer_file", "vocab_file", "merges_file"):
        names = {
            "tokenizer_file": ("tokenizer.json",),
            "vocab_file": ("vocab.txt", "vocab.json"),
            "merges_file": ("merges.txt",),
        }[key]
        beside = [name for name in names if (folder / name).is_file()]
        if key in raw and beside and raw[key] not in [str(folder / name) for name in beside]:
            # If the folder lacks the file, the key of a tokenizer.json is ignored.
            raise _refusal(path, key, f"no such key beside {beside[0]}", raw[key])
    code = raw.get("auto_map")
    if code is not None and (not isinstance(code, dict) or code.get("AutoTokenizer")):
        raise _refusal(path, "auto_map", "no tokenizer with code of its own", code)


def _token(path: Path, key: str, value: Any, **flags: bool) -> Any:
    """Make an added token from its JSON object."""
    if not isinstance(value, dict):
        raise _refusal(path, key, "a token, a JSON object", value)
    content = value.get("content")
    if not isinstance(content, str) or not 0 < len(content) <= LONGEST_TOKEN:
        raise _refusal(path, key, f"a 'content' of 1..{LONGEST_TOKEN} characters", content)
    for name, flag in value.items():
        if name in ("content", "__type", "id"):
            continue
        if name not in FLAGS or not isinstance(flag, bool):
            raise _refusal(path, key, f"{', '.join(FLAGS)}: true or false", {name: flag})
    given = {name: value[name] for name in FLAGS if name in value}
    if content.isspace() and (given.get("lstrip") or given.get("rstrip")):
        raise _refusal(path, key, "white space without lstrip and rstrip", value)
    return tokenizers.AddedToken(content, **{**given, **flags})


def _decoder(path: Path, value: Any) -> list[tuple[str, int, Any]]:
    """Read the tokens of ``added_tokens_decoder``, by id."""
    key = "added_tokens_decoder"
    if not isinstance(value, dict):
        raise _refusal(path, key, "tokens by id, a JSON object", value)
    found = {}
    for number, token in value.items():
        if not number.isascii() or not number.isdigit() or len(number) > 10:
            raise _refusal(path, key, "ids as keys, whole numbers", number)
        found[int(number)] = _token(path, key, token)
    return [(path.name, number, found[number]) for number in sorted(found)]


def _special_tokens_map(path: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Read the keys of special_tokens_map.json, which versions before 4.34 wrote."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = {}
    for key, value in read_json(path).items():
        found[key] = value
        if isinstance(value, dict) and key != "extra_special_tokens":
            found[key] = _token(path, key, value, special=True)
        elif key == "additional_special_tokens" and isinstance(value, list):
            former = raw.get(key) or []
            if not isinstance(former, list):
                raise _refusal(path.with_name(CONFIG), key, "a list of tokens", former)
            more = [
                _token(path, key, one, special=True) if isinstance(one, dict) else one
                for one in value
            ]
            found[key] = [*former, *(one for one in more if one not in former)]
        elif key in NAMED and not isinstance(value, (str, type(None))):
            raise _refusal(path, key, "a token", value)
    return found


def _added_tokens(
    path: Path, values: Mapping[str, Any], raw: Mapping[str, Any]
) -> list[tuple[str, int, Any]]:
    """Read the tokens of added_tokens.json, by id; other files decide which ones are special.

    As in version 5, only tokenizer_config.json can name additional special tokens.
    """
    if not path.is_file():
        return []
    more = raw.get("extra_special_tokens") or raw.get("additional_special_tokens")
    tokens = [values.get(key) for key in NAMED if key.endswith("_token")]
    tokens += more if isinstance(more, list) else []
    named = {str(getattr(one, "content", one)) for one in tokens}
    found: dict[int, Any] = {}
    for content, number in read_json(path).items():
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise _refusal(path, content, "an id, a whole number from 0 on", number)
        if number in found:
            raise _refusal(path, content, "an id of its own", number)
        if not 0 < len(content) <= LONGEST_TOKEN:
            raise _refusal(path, content, f"a token of 1..{LONGEST_TOKEN} characters", content)
        special = content in named
        found[number] = tokenizers.AddedToken(content, normalized=not special, special=special)
    return [(path.name, number, found[number]) for number in sorted(found)]


def _check_special(path: Path, values: dict[str, Any]) -> None:
    """Refuse invalid special tokens, and convert those given as JSON objects."""

    def convert(key: str, value: Any) -> Any:
        if isinstance(value, dict) and value.get("__type") == "AddedToken":
            value = _token(path, key, value)
        content = getattr(value, "content", value)
        if not isinstance(content, str) or not 0 < len(content) <= LONGEST_TOKEN:
            raise _refusal(path, key, f"a token of 1..{LONGEST_TOKEN} characters", value)
        return value

    for key in NAMED:
        value = values.get(key)
        if value is None:
            continue
        if key == "additional_special_tokens":
            if not isinstance(value, list):
                raise _refusal(path, key, "a list of tokens", value)
            values[key] = [convert(key, one) for one in value]
        else:
            values[key] = convert(key, value)
    key = "extra_special_tokens"  # version 4 writes an object, version 5 a list
    extra = values.get(key)
    if isinstance(extra, dict):
        values[key] = {name: convert(key, one) for name, one in extra.items()}
    elif isinstance(extra, list):
        values[key] = [convert(key, one) for one in extra]
    elif extra is not None:
        raise _refusal(path, key, "a list or an object of tokens", extra)


def _longest(path: Path, raw: Mapping[str, Any]) -> int | None:
    """Return ``model_max_length``, or the value of its former name; None if there is no limit."""
    key = "model_max_length" if "model_max_length" in raw else "max_len"
    value = raw.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not value >= _SHORTEST:
        raise _refusal(path, key, f"a number of at least {_SHORTEST}", value)
    return int(value) if value < 1 << 62 else None


def _token_types(path: Path, raw: Mapping[str, Any], kind: TokenizerClass) -> bool | None:
    """Check for token types in ``model_input_names``; if it is absent, the class decides."""
    key = "model_input_names"
    if key not in raw:
        return kind.token_types
    names = raw[key]
    needed = ("input_ids", "attention_mask")
    if not isinstance(names, list) or not all(name in names for name in needed):
        raise _refusal(path, key, f"a list with {' and '.join(needed)}", names)
    return "token_type_ids" in names


def _sentences(folder: Path) -> Sentences | None:
    """Read the settings of sentence-transformers, from the first of the names that it tries."""
    if not (folder / "modules.json").is_file():
        return None
    kinds = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    paths = [folder / f"sentence_{kind}_config.json" for kind in kinds]
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        return Sentences()
    raw = read_json(path)
    for key in ("tokenizer_args", "tokenizer_name_or_path"):
        if raw.get(key):
            raise _refusal(path, key, "no such key", raw[key])
    lowercase, longest = raw.get("do_lower_case", False), raw.get("max_seq_length")
    if not isinstance(lowercase, bool):
        raise _refusal(path, "do_lower_case", "true or false", lowercase)
    if longest is not None and (type(longest) is not int or longest < _SHORTEST):
        raise _refusal(path, "max_seq_length", f"a number of at least {_SHORTEST}", longest)
    return Sentences(lowercase, longest)
