"""The glossary is in order, and has an entry for every format, observer, model and term in use."""

import re

import pytest
from conftest import ROOT

from bert_numpy.model.architectures import ARCHITECTURES
from bert_numpy.quantization.observers import OBSERVERS
from bert_numpy.quantization.recipe import GRANULARITIES
from bert_numpy.tasks.glue import TASKS
from bert_numpy.tasks.registry import OTHERS
from npfp8.blocks import BLOCK_FORMATS
from npfp8.formats import FORMATS

GLOSSARY = ROOT / "docs" / "glossary.md"
TEXT = GLOSSARY.read_text(encoding="utf-8")

#: The other pages, and the notebooks.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
PAGES += (ROOT / "notebooks").glob("*.ipynb")
READING = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page != GLOSSARY)

#: Terms of the pages' headings, tables and text.
TERMS = [
    *("absmax", "accumulator", "activation", "asymmetric", "attention", "AVX-512", "BF16"),
    *("bfloat16", "bias", "binade", "BLAS", "block format", "block scale", "bootstrap"),
    *("byte-level BPE", "calibration", "candidate", "checkpoint", "code", "codec", "CoLA"),
    *("compressed-tensors", "context", "cosine", "decoder", "dequantize", "dialect", "digest"),
    *("directed rounding", "overflow", "Philox"),
    *("double rounding", "dynamic", "embedding", "encoder", "engine", "exact match", "F1"),
    *("fake quantization", "flip", "float32", "flush-to-zero", "FNUZ", "format", "FP32", "fused"),
    *("fuzzer", "GELU", "GLUE", "golden", "granularity", "H100", "head", "histogram", "IEEE 754"),
    *("kernel", "kit", "Kullback-Leibler", "LayerNorm", "LLM.int8()", "logit", "mantissa", "mask"),
    *("masked language model", "Matthews", "Metaspace", "migration", "MiniLM", "MRPC"),
    *("mutation testing", "MX", "NaN", "nibble", "observer", "OCP", "ONNX", "operand", "opset"),
    *("outlier", "outlier channel", "override", "padding", "parity", "Pearson", "peer"),
    *("percentile", "pickle", "pooler", "pooling", "Post-Training Quantization", "preset"),
    *("profile", "prompt", "property", "quantize", "recipe", "residual", "round to odd", "rule"),
    *("safetensors", "saturate", "scale", "sensitivity", "SentencePiece", "sentence-transformers"),
    *("shard", "significand", "SIMD", "site", "SmoothQuant", "softmax", "span", "Spearman"),
    *("Split K", "SQNR", "SQuAD", "SST-2", "static", "sticky bit", "Stochastic rounding", "STS-B"),
    *("subnormal", "swizzle", "symmetric", "tensor core", "tensor scale", "Test vector", "tie"),
    *("ties to even", "token", "tokenizer", "underflow", "Unigram", "VNNI", "vocabulary", "weight"),
    *("wgmma", "window", "WordPiece", "zero point"),
]


def entries(text: str) -> list[tuple[str, str]]:
    """Read the names of each entry, as they are written, and the sentence that follows."""
    found = re.findall(r"^- \*\*(.+?)\*\* (.+?)(?=\n\n|\n- |\s*\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(found) == text.count("\n- "), "an entry is `- **name** sentence`"
    return found


def key(name: str) -> str:
    """Reduce a name to its letters and digits in lower case, by which entries are sorted."""
    return re.sub(r"[^0-9a-z ]", "", name.casefold())


def has_entry(term: str, text: str = TEXT) -> bool:
    """Tell whether the term, as whole words, is in one of the names of an entry."""
    words = key(term.replace("-", " "))
    names = [key(part.replace("-", " ")) for names, _ in entries(text) for part in names.split(",")]
    return any(re.search(rf"(^|\s){re.escape(words)}($|\s)", name.strip()) for name in names)


def test_entries_are_sorted_and_unique() -> None:
    names = [key(names) for names, _ in entries(TEXT)]
    assert names == sorted(names)
    every = [part.strip().casefold() for names, _ in entries(TEXT) for part in names.split(",")]
    assert len(set(every)) == len(every)


def test_an_entry_stands_under_its_letter() -> None:
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        letter, _, body = section.partition("\n")
        assert {key(names)[0] for names, _ in entries(f"\n{body}")} == {letter.strip().lower()}


@pytest.mark.parametrize(("names", "sentence"), entries(TEXT), ids=lambda value: value[:30])
def test_an_entry_is_a_short_sentence(names: str, sentence: str) -> None:
    """A verb follows the name, a full stop ends the entry, and its links lead to pages."""
    assert sentence[0].islower(), names
    assert sentence.endswith("."), names
    plain = re.sub(r"\]\([^)]*\)", "", sentence)
    assert len(plain.split()) <= 40, names
    for page in re.findall(r"\]\(([^)#]+)", sentence):
        assert (GLOSSARY.parent / page).is_file(), names


@pytest.mark.parametrize("term", TERMS)
def test_a_term_in_use_has_an_entry(term: str) -> None:
    assert re.search(re.escape(term), READING, re.IGNORECASE), "no page uses it any more"
    assert has_entry(term)


def test_whatever_comes_in_variants_has_an_entry() -> None:
    """A new format, observer, granularity, family or task needs an entry."""
    names = [*FORMATS, *BLOCK_FORMATS, *(name.replace("_", " ") for name in OBSERVERS)]
    names += [f"per {name}" for name in GRANULARITIES]
    names += [{"xlm-roberta": "XLM-R"}.get(name, name) for name in ARCHITECTURES]
    spelling = {"sst2": "SST-2", "stsb": "STS-B", "mnli-mm": "MNLI", "stsb-cosine": "STS-B"}
    names += [spelling.get(name, name) for name in (*TASKS, *OTHERS)]
    assert [name for name in names if not has_entry(name)] == []


def test_a_missing_entry_is_found() -> None:
    text = TEXT.replace("- **absmax** ", "- **maximum** ")
    assert not has_entry("absmax", text)
    assert has_entry("maximum", text)
