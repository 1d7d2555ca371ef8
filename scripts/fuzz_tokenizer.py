"""Make folders with tokenizers in every combination of files and keys; compare with transformers.

    python scripts/fuzz_tokenizer.py [--cases N] [--seed S] [--first NUMBER] [--verbose]

Each case is a folder with a vocabulary (``vocab.txt``, ``vocab.json`` with ``merges.txt``,
``tokenizer.json``, or several of them), and random keys in tokenizer_config.json,
special_tokens_map.json, added_tokens.json and config.json. Ids, token types and attention masks
of texts, pairs and truncated inputs are compared with those of transformers' AutoTokenizer:

    equal      the same, in every input
    refused    one error that names a file of the folder, and a key or what it found there
    no peer    transformers itself cannot load the folder

Anything else is a failure: a difference without a refusal, an error that names nothing, any
other exception, and a refusal of a folder that transformers 2, 3, 4 or 5 writes itself. A case
depends only on the seed and its number. The result is for the installed transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

import bert_numpy

Json = dict[str, Any]

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "Film", "FILM", "the", "The", "cafe"),
    *(
        "caf\u00e9",
        "\u00e9",
        "\u65e5",
        "\u672c",
        "\u65e5\u672c",
        "mon",
        "##key",
        "##ks",
        "##\u672c",
    ),
    *("A", "##1", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<cls>", "<sep>", "##s"),
    *"abcdefhiklmnorstuy[]/<>E12.,!",
]

TEXTS = [
    "a film",
    "The Film FILM a cafe caf\u00e9",
    " leading and trailing ",
    "a [E1] film [/E1] b",
    "a[E1]film<ent>b  two   spaces",
    "\u65e5\u672c \u65e5 a\u672c",
    "monkeys the monkey e\u0301 \u00e9",
    "[MASK] a [CLS] <mask>b <mask> c <s> </s>",
    "NEW Word new word Newword",
    "tab\tnew\nline\u00a0nbsp",
    "``a film'' A ''the``",
    "the film a film the film a film the film a film",
]
PAIRS = [*TEXTS[3:], *TEXTS[:3]]
LENGTHS = (None, 5, 6, 9, 16)

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CORPUS = [*TEXTS, "monkey film the cafe a b c"] * 3

CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "albert": "AlbertTokenizer",
    "mpnet": "MPNetTokenizer",
}

#: The model types whose own tokenizer is WordPiece.
WORD_PIECES = ("bert", "distilbert", "electra", "mpnet")


#: The beginning of CamemBERT's vocabulary.
CAMEMBERT = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]

#: The beginning of ALBERT's vocabulary, whose second token is the unknown one.
ALBERT = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]

#: The beginning of MPNet's vocabulary.
MPNET = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]


@cache
def byte_level() -> str:
    """Make the tokenizer.json of a byte-level BPE with RoBERTa's special tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=ROBERTA,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return str(made.to_str())


def character_map() -> bytes:
    """Make SentencePiece's map of characters with one key: "A" becomes "a"."""
    units = [0] * 1024
    units[0] = 256 << 10
    child = 256 ^ ord("A")
    units[child] = ord("A") | 1 << 8 | (child ^ 768) << 10
    units[768] = 1 << 31
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(trie).to_bytes(4, "little") + trie + b"a\0"


@cache
def unigram(model_type: str) -> str:
    """Make the tokenizer.json of a Unigram model with XLM-R's, CamemBERT's or ALBERT's tokens."""
    albert = model_type == "albert"
    first = {"camembert": CAMEMBERT, "albert": ALBERT}.get(model_type, ROBERTA[:4])
    cls, sep, mask = ("[CLS]", "[SEP]", "[MASK]") if albert else ("<s>", "</s>", "<mask>")
    pieces = ["\u2581", "a", "\u2581a", "\u2581film", "the", "\u2581the", *"bcdefhiklmnorstuy", '"']
    vocabulary = [(token, 0.0) for token in first]
    vocabulary += [(piece, -2.0 - 0.1 * number) for number, piece in enumerate(pieces)]
    vocabulary += [] if albert else [(mask, 0.0)]
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, first.index("<unk>"), False))
    quotes = [normalizers.Replace(quote, '"') for quote in ("``", "''")]
    case = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    spaces = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    parts = [normalizers.Precompiled(character_map()), spaces]
    made.normalizer = normalizers.Sequence([*quotes, *case, *parts] if albert else parts)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1" if albert else "<s> $A </s> </s> $B </s>",
        special_tokens=[(token, first.index(token)) for token in (cls, sep)],
    )
    added = [
        tokenizers.AddedToken(token, lstrip=token == mask, normalized=False)
        for token in dict.fromkeys((*first, mask))
    ]
    made.add_special_tokens(added)
    return str(made.to_str())


def words(model_type: str) -> list[str]:
    """List the vocabulary of a WordPiece model."""
    first = MPNET if model_type == "mpnet" else WORDS[:5]
    return list(dict.fromkeys((*first, *WORDS[5:])))


def word_piece(model_type: str, lowercase: bool, accents: bool | None, chinese: bool) -> str:
    """Make the tokenizer.json of BERT's tokenizer or MPNet's, like transformers 4 and 5."""
    vocabulary = {token: number for number, token in enumerate(words(model_type))}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=accents, handle_chinese_chars=chinese
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if model_type == "mpnet":
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        mask = tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)
        made.add_special_tokens([*MPNET[:-1], mask])
        return str(made.to_str())
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_special_tokens(WORDS[:5])
    return str(made.to_str())


def flags(generator: random.Random, special: bool) -> Json:
    """Draw the flags of an added token."""
    return {
        "lstrip": generator.random() < 0.2,
        "rstrip": generator.random() < 0.2,
        "single_word": generator.random() < 0.2,
        "normalized": not special if generator.random() < 0.7 else special,
        "special": special,
    }


def write(path: Path, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8", newline="\n")


class Folder:
    """The files of a case under construction."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.model_type = generator.choice(list(CLASSES))
        self.serialized: Json = {}
        self.settings: Json = {}
        self.map: Json = {}
        self.added: Json = {}
        self.config: Json = {}
        self.texts: dict[str, str] = {}
        self.ours = False  # a folder that transformers itself would write

    def chance(self, probability: float) -> bool:
        """Decide whether an event of this probability happens."""
        return self.generator.random() < probability

    @property
    def words(self) -> bool:
        """True if the model's own tokenizer is WordPiece."""
        return self.model_type in WORD_PIECES

    def size(self) -> int:
        """Count the tokens of the vocabulary without the added ones."""
        if self.words:
            return len(words(self.model_type))
        raw = json.loads(byte_level() if self.model_type == "roberta" else unigram(self.model_type))
        return len(raw["model"]["vocab"])

    def vocabulary(self, with_json: bool, with_text: bool) -> None:
        """Put the vocabulary into tokenizer.json, into the class's own files, or into both."""
        choose = self.generator.choice
        if self.words:
            settings = (choose([True, False]), choose([None, None, True, False]), self.chance(0.8))
            if self.ours:
                settings = (True, None, True)
            if with_json:
                self.serialized = json.loads(word_piece(self.model_type, *settings))
            if with_text:
                self.texts["vocab.txt"] = "".join(f"{word}\n" for word in words(self.model_type))
        elif self.model_type == "roberta":
            raw = json.loads(byte_level())
            if with_json:
                self.serialized = raw
            if with_text:
                self.texts["vocab.json"] = json.dumps(raw["model"]["vocab"])
                merges = [
                    one if isinstance(one, str) else " ".join(one) for one in raw["model"]["merges"]
                ]
                self.texts["merges.txt"] = "\n".join(["#version: 0.2", *merges, ""])
        else:
            self.serialized = json.loads(unigram(self.model_type))

    def add_tokens(self, where: str, tokens: list[str]) -> None:
        """Add tokens in one of the places, with ids after the vocabulary."""
        for number, token in enumerate(tokens, self.size()):
            special = self.chance(0.5)
            entry = {"content": token, **flags(self.generator, special)}
            if where == "added_tokens.json":
                self.added[token] = number
                if special:
                    self.map.setdefault("additional_special_tokens", []).append(token)
            elif where == "added_tokens_decoder":
                self.settings.setdefault("added_tokens_decoder", {})[str(number)] = entry
            elif self.serialized:
                self.serialized["added_tokens"].append({"id": number, **entry})

    def save(self, folder: Path) -> None:
        """Write the files."""
        size = self.size() + len(self.added) + 8
        config = {
            "model_type": self.model_type,
            "vocab_size": size,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "max_position_embeddings": 130,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        }
        if self.model_type in (*WORD_PIECES[:-1], "albert"):
            config |= {"type_vocab_size": 2, "pad_token_id": 0}
        if self.model_type == "distilbert":
            config |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
        write(folder / "config.json", config | self.config)
        files = {
            "tokenizer.json": self.serialized,
            "tokenizer_config.json": self.settings,
            "special_tokens_map.json": self.map,
            "added_tokens.json": self.added,
        }
        for name, content in files.items():
            if content:
                write(folder / name, content)
        for name, text in self.texts.items():
            write(folder / name, text)


def named(model_type: str) -> Json:
    """Return the special tokens by their keys."""
    if model_type in WORD_PIECES[:-1]:
        names = ("pad", "unk", "cls", "sep", "mask")
        return {f"{name}_token": f"[{name.upper()}]" for name in names}
    if model_type == "albert":
        tokens = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "cls": "[CLS]"}
        tokens |= {"pad": "<pad>", "unk": "<unk>", "mask": "[MASK]"}
        return {f"{name}_token": token for name, token in tokens.items()}
    tokens = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>"}
    tokens |= {name: f"<{name}>" for name in ("pad", "unk", "mask")}
    tokens |= {"unk": "[UNK]"} if model_type == "mpnet" else {}
    return {f"{name}_token": token for name, token in tokens.items()}


#: By model type: the keys that versions 4 and 5 write.
WRITTEN: dict[str, Json] = {
    "bert": {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
    "albert": {"do_lower_case": True, "keep_accents": False, "remove_space": True},
    "roberta": {"add_prefix_space": False, "trim_offsets": True, "errors": "replace"},
}


def as_written(folder: Folder) -> None:
    """Make a folder like a version of transformers."""
    folder.ours = True
    version = folder.generator.choice([2, 3, 4, 5])
    if version in (2, 3) and folder.model_type in ("xlm-roberta", "camembert", "albert"):
        folder.model_type = "bert"  # those types then had only SentencePiece's file
    folder.vocabulary(version >= 4, version < 5)
    tokens = ["[E1]", "[/E1]"] if folder.chance(0.5) else []
    special = named(folder.model_type)
    if version == 2:
        folder.settings = {"do_lower_case": folder.chance(0.5), "max_len": 128, "init_inputs": []}
        folder.map = special
        folder.add_tokens("added_tokens.json", tokens)
    elif version == 3:
        folder.settings = {"do_lower_case": folder.chance(0.5), "model_max_length": 512}
        if folder.words:
            folder.settings |= {"strip_accents": None, "tokenize_chinese_chars": True}
        folder.settings |= {"name_or_path": "somewhere", "special_tokens_map_file": None}
        folder.map = special
        folder.add_tokens("added_tokens.json", tokens)
    else:
        folder.add_tokens("tokenizer.json", tokens)
        folder.settings = {
            **special,
            "tokenizer_class": CLASSES[folder.model_type],
            "model_max_length": folder.generator.choice([128, 512, int(1e30)]),
            "clean_up_tokenization_spaces": True,
        }
        folder.settings |= WRITTEN.get("bert" if folder.words else folder.model_type, {})
    if version == 4:
        added = folder.serialized["added_tokens"]
        if folder.chance(0.7):
            folder.settings["added_tokens_decoder"] = {
                str(one["id"]): {key: value for key, value in one.items() if key != "id"}
                for one in added
            }
            folder.settings["extra_special_tokens"] = {}
        folder.added = {one["content"]: one["id"] for one in added if one["id"] >= folder.size()}
        folder.map = dict(special)
        if folder.chance(0.5):
            folder.map = {
                key: {
                    "content": token,
                    **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
                }
                for key, token in special.items()
            }
            if special["mask_token"] == "<mask>":
                folder.map["mask_token"]["lstrip"] = True
    if version == 5:
        folder.settings |= {
            "backend": "tokenizers",
            "is_local": True,
            "local_files_only": False,
            "padding_side": "right",
            "truncation_side": "right",
            "pad_token_type_id": 0,
        }


#: The keys of tokenizer_config.json, with the values to try.
KEYS: dict[str, list[Any]] = {
    "do_lower_case": [True, False, "yes", None],
    "strip_accents": [True, False, None],
    "keep_accents": [True, False],
    "remove_space": [True, False],
    "tokenize_chinese_chars": [True, False],
    "add_prefix_space": [True, False],
    "trim_offsets": [True, False],
    "model_max_length": [12, 100, 512, int(1e30), 1e30, "many", -1],
    "max_len": [12, 100],
    "padding_side": ["right", "left"],
    "truncation_side": ["right", "left", "middle"],
    "never_split": [None, ["[E1]"]],
    "do_basic_tokenize": [True, False],
    "wordpieces_prefix": ["##", "@@"],
    "clean_text": [True, False],
    "clean_up_tokenization_spaces": [True, False],
    "model_input_names": [
        ["input_ids", "attention_mask"],
        ["input_ids", "token_type_ids", "attention_mask"],
        ["input_ids"],
    ],
    "use_fast": [True, False],
    "from_slow": [True, False],
    "tokenizer_file": ["tokenizer.json", None, "/nowhere/tokenizer.json"],
    "vocab_file": [None, "/nowhere/vocab.txt"],
    "split_special_tokens": [True, False],
    "add_bos_token": [True, False],
    "add_eos_token": [True, False],
    "errors": ["replace", "strict"],
    "init_inputs": [[]],
    "name_or_path": ["somewhere"],
    "special_tokens_map_file": [None, "special_tokens_map.json"],
    "extra_special_tokens": [{}, {"one": "<ent>"}],
    "additional_special_tokens": [[], ["[E1]"], ["film"], ["<ent>", "[/E1]"], "[E1]"],
    "stride": [0, 3],
    "max_length": [4, 100],
    "pad_to_multiple_of": [None, 8],
    "pad_token_type_id": [0, 1],
    "truncation_strategy": ["longest_first", "only_first"],
    "return_tensors": ["pt"],
    "unknown_key": [1, "x"],
    "auto_map": [None, {"AutoTokenizer": ["custom.Slow", None]}],
    "cls_token": ["[CLS]", "<s>", "<cls>", None],
    "sep_token": ["[SEP]", "</s>", "<sep>"],
    "pad_token": ["[PAD]", "<pad>", "a", None],
    "unk_token": ["[UNK]", "<unk>", "a"],
    "mask_token": ["[MASK]", "<mask>", "film", "[M]", None],
    "bos_token": ["<s>", "[CLS]", None],
    "eos_token": ["</s>", "new word"],
}


def at_random(folder: Folder) -> None:
    """Make random files and keys."""
    choose, chance = folder.generator.choice, folder.chance
    with_json = chance(0.65)
    folder.vocabulary(with_json, not with_json or chance(0.6))
    places = ("added_tokens.json", "added_tokens_decoder", "tokenizer.json")
    tokens = ["[E1]", "[/E1]", "<ent>", "Newword", "new word", "film"]
    for place in places:
        if chance(0.25):
            folder.add_tokens(
                place, folder.generator.sample(tokens, folder.generator.randint(1, 3))
            )
    for key in folder.generator.sample(list(KEYS), folder.generator.randint(0, 5)):
        folder.settings[key] = choose(KEYS[key])
    if chance(0.3):
        token = choose(list(named("bert")))
        content = choose(KEYS.get(token, ["x"])) or "x"
        value = {"content": content, **flags(folder.generator, True)}
        folder.settings[token] = {"__type": "AddedToken", **value} if chance(0.8) else value
    if chance(0.3):
        for key in folder.generator.sample(list(named("bert")), 2):
            content = choose(KEYS[key]) or "<ent>"
            value = {"content": content, **flags(folder.generator, True)}
            value.pop("special")
            folder.map[key] = content if chance(0.5) else value
    if chance(0.5):
        name = choose([CLASSES[folder.model_type]] * 3 + list(CLASSES.values()))
        name += "Fast" if chance(0.3) else ""
        name = choose([name] * 6 + ["PreTrainedTokenizerFast", "GPT2Tokenizer", "Nothing", None])
        (folder.settings if chance(0.7) else folder.config)["tokenizer_class"] = name
    if folder.serialized:
        change_serialized(folder)
    if folder.settings and "tokenizer_class" not in folder.settings and chance(0.3):
        folder.settings["tokenizer_class"] = CLASSES[folder.model_type]


def change_serialized(folder: Folder) -> None:
    """Contradict tokenizer.json in the other files, and remove parts of it."""
    raw, choose, chance = folder.serialized, folder.generator.choice, folder.chance
    if chance(0.1):
        raw["post_processor"] = None
    if chance(0.05):
        raw["normalizer"] = choose([None, {"type": "Lowercase"}, {"type": "NFC"}])
    if chance(0.3):
        side = choose(["Left", "Right"])
        raw["truncation"] = {
            "direction": side,
            "max_length": 7,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    if chance(0.3):
        raw["padding"] = {
            "strategy": choose([{"Fixed": 20}, "BatchLongest"]),
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": choose(["[PAD]", "<pad>"]),
        }
    if folder.model_type == "roberta":
        raw["pre_tokenizer"]["add_prefix_space"] = chance(0.3)
        if chance(0.2):
            parts = [{"type": "WhitespaceSplit"}, raw["pre_tokenizer"]]
            raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    if raw["model"]["type"] == "Unigram":
        change_unigram(folder)
    if chance(0.1):
        raw["added_tokens"] = [one for one in raw["added_tokens"] if one["content"] != "<mask>"]
    checked = folder.words or folder.model_type == "albert"
    if not (checked or folder.settings or folder.map or folder.added or folder.config):
        # This is the one deviation: without other files, tokenizer.json is used unchanged.
        folder.settings["tokenizer_class"] = CLASSES[folder.model_type]


def change_unigram(folder: Folder) -> None:
    """Use the components that versions of transformers have written, and others."""
    raw, choose, chance = folder.serialized, folder.generator.choice, folder.chance
    parts = json.loads(unigram(folder.model_type))["normalizer"]["normalizers"]
    *first, characters, spaces = parts
    unknown = raw["model"]["unk_id"]
    pieces = raw["pre_tokenizer"]["pretokenizers"][1]
    ends = {"type": "Strip", "strip_left": False, "strip_right": True}
    if chance(0.3):
        raw["normalizer"] = choose([characters, spaces, None])
        if first and chance(0.8):  # ALBERT's components, without one or two of them
            left = [part for part in parts if part not in folder.generator.sample(parts, 2)]
            raw["normalizer"] = {"type": "Sequence", "normalizers": choose([parts[:-1], left])}
    elif chance(0.3):  # as in 4.40
        parts = [*first, characters, ends, {**spaces, "content": "\u2581"}]
        raw["normalizer"] = {"type": "Sequence", "normalizers": parts}
        raw["pre_tokenizer"] = pieces
    elif chance(0.1):
        raw["normalizer"] = {"type": "Sequence", "normalizers": [raw["normalizer"]]}
    if chance(0.1):
        number = choose([0, 1, 3])
        vocabulary = raw["model"]["vocab"]
        vocabulary[number], vocabulary[unknown] = vocabulary[unknown], vocabulary[number]
        raw["model"]["unk_id"] = number
        for token in raw["added_tokens"]:
            token["id"] = {number: unknown, unknown: number}.get(token["id"], token["id"])


def peer_of(folder: Path) -> Callable[..., list[tuple[list[int], list[int]]]] | None:
    """Load transformers' tokenizer as a function to ids and types; None if it cannot load it."""
    options = {}
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("*tok*.json"))]
    if any('"added_tokens_decoder"' in text for text in texts):
        texts = texts[-1:]  # with this key in tokenizer_config.json the other files are ignored
    explicit = re.search(r'"mask_token": [{n]', "".join(texts))
    serialized = (folder / "tokenizer.json").is_file()
    if (folder / "vocab.json").is_file() and not serialized and not explicit:
        named = re.search(r'"mask_token": "([^"]*)"', "".join(texts[::-1]))
        content = named[1] if named else "<mask>"
        mask = tokenizers.AddedToken(content, lstrip=True, special=True)  # see the docs
        options = {"mask_token": mask}
    try:
        made = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except Exception:
        return None
    if not made.is_fast:
        return None

    def encode(texts: list[str], pairs: list[str] | None, length: int | None) -> Any:
        options = {"truncation": "longest_first", "max_length": length} if length else {}
        found = made(texts, pairs, **options)
        types = found.get("token_type_ids") or [[0] * len(ids) for ids in found["input_ids"]]
        assert all(all(mask) for mask in found.get("attention_mask", []))
        return list(zip(found["input_ids"], types, strict=True))

    return encode


NAMES_SOMETHING = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|config|vocab)\.json|"
    r"vocab\.txt|merges\.txt"
)


class FailedError(Exception):
    """The failure of a case."""


def compare(folder: Path, model_type: str) -> tuple[str, str]:
    """Return the result of a case: its kind, and the refusal if there is one."""
    peer = peer_of(folder)
    try:
        tokenizer = bert_numpy.load_tokenizer(folder)
    except bert_numpy.BertNumpyError as error:
        message = str(error)
        if "\n" in message or not NAMES_SOMETHING.search(message):
            raise FailedError(f"the refusal names nothing: {message}") from None
        return "refused", message.replace(f"{folder}/", "")
    if peer is None:
        return "no peer", ""
    refused = ""
    for pairs in (None, PAIRS):
        for length in LENGTHS:
            if length is None or length <= tokenizer.model_max_length:
                try:
                    expected = peer(TEXTS, pairs, length)
                except Exception as error:
                    return "no peer", str(error)
                for number, right in enumerate(expected):
                    pair = None if pairs is None else pairs[number]
                    typed = model_type in ("bert", "electra", "albert")
                    found = check(tokenizer, TEXTS[number], pair, length, right, typed)
                    refused = found or refused
    return "equal", refused


def check(
    tokenizer: bert_numpy.Tokenizer,
    text: str,
    pair: str | None,
    length: int | None,
    right: tuple[list[int], list[int]],
    typed: bool,
) -> str:
    """Compare one input; return the message if it is refused for a good reason."""
    ids, types = right
    case = f"{text!r}, {pair!r}, {length}"
    try:
        (found,) = tokenizer.encode([text], None if pair is None else [pair], length)
    except bert_numpy.BertNumpyError as error:
        message = str(error)
        beyond = max(ids) >= (tokenizer.vocab_size or 0)
        long = len(ids) > (length or tokenizer.model_max_length)
        typeless = pair is not None and "model_input_names" in message
        short = length is not None and length < 6 and message.startswith("max_length: expected")
        if not (beyond or long or short or typeless):
            raise FailedError(f"{case}: refused: {message}") from None
        return message
    if list(found.input_ids) != ids:
        raise FailedError(f"{case}: ids {found.input_ids}, transformers {ids}")
    if list(found.token_type_ids) != (types if typed else [0] * len(types)):
        raise FailedError(f"{case}: types {found.token_type_ids}, transformers {types}")
    return ""


def make(seed: int, number: int, folder: Path) -> Folder:
    """Write the folder of a case."""
    made = Folder(random.Random(f"{seed} {number}"))
    (as_written if made.chance(0.3) else at_random)(made)
    made.save(folder)
    return made


def run(seed: int, number: int) -> tuple[str, str, bool]:
    """Make a folder and compare; the last value is True if transformers writes such folders."""
    with tempfile.TemporaryDirectory() as name:
        made = make(seed, number, Path(name))
        try:
            kind, found = compare(Path(name), made.model_type)
        except FailedError as error:
            kind, found = "failed", str(error)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            kind, found = "failed", f"{type(error).__name__}: {error}"
    if made.ours and kind != "equal":
        kind, found = "failed", f"as transformers writes it, but {kind}: {found}"
    return kind, found, made.ours


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--verbose", action="store_true", help="show every refusal")
    arguments = parser.parse_args()
    results: Counter[str] = Counter()
    written = 0
    failures = []
    for number in range(arguments.first, arguments.first + arguments.cases):
        kind, found, ours = run(arguments.seed, number)
        results[kind] += 1
        written += ours
        if kind == "failed":
            failures.append(f"case {number}: {found}")
        elif arguments.verbose and found:
            print(f"case {number}: {kind}: {found}")
    for failure in failures[:50]:
        print(failure)
    print(
        f"{arguments.cases} folders, {written} of them as transformers writes them, seed "
        f"{arguments.seed}, transformers {transformers.__version__}: "
        + ", ".join(f"{results[kind]} {kind}" for kind in ("equal", "refused", "no peer"))
        + f"; {len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
