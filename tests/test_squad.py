"""Question answering: the data, windows, spans, metrics, the head, and whole jobs."""

from __future__ import annotations

import importlib
import json
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from factories import CONFIG, VOCABULARY, random_tensors, write_checkpoint, write_tensors
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import assert_same_bits

from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Model,
    Tokenizer,
    apply_recipe,
    calibrate,
    load,
    load_tokenizer,
)
from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.main import main
from bert_numpy.evaluation.evaluate import compare_with, evaluate_task, text_logits
from bert_numpy.evaluation.job import Job, prepare, run
from bert_numpy.model.sites import expected_shapes
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.metrics import ANSWER_METRICS, answer_f1, exact_match, normalize_answer
from bert_numpy.tasks.spans import Answer, best_answers, most_context
from bert_numpy.tasks.squad import SQUAD, Question, Questions, merge_questions, read_questions
from bert_numpy.tasks.tokenization import EncodedText, Window

QA = {"architectures": ["BertForQuestionAnswering"]}
PARITY = 1e-5


def refusal(function: Callable[[], Any]) -> str:
    with pytest.raises(BertNumpyError) as caught:
        function()
    return str(caught.value)


# The data


CONTEXTS = [
    "The film was very warm, and the actor was funny. The plot was not bad.",
    "A dull movie: the actor is good; the plot, 12 films old, is \u201cnot\u201d caf\u00e9.",
    "the good film " * 20 + "was bad",
]


def answer(context: str, text: str) -> dict[str, Any]:
    return {"text": text, "answer_start": context.index(text)}


def squad_json(first: str = "q") -> dict[str, Any]:
    """Six questions on three contexts, in two articles."""
    asked = [
        [("What was warm?", ["The film", "film"]), ("Who was funny?", ["the actor"])],
        [("What is old?", ["the plot", "12 films"]), ("What is it not?", ["caf\u00e9", "not"])],
        [("What was bad?", ["film was bad"]), ("Is the film good?", ["the good film"])],
    ]
    paragraphs = []
    for i, context in enumerate(CONTEXTS):
        qas = [
            {
                "id": f"{first}{i}{j}",
                "question": question,
                "answers": [answer(context, text) for text in texts],
            }
            for j, (question, texts) in enumerate(asked[i])
        ]
        paragraphs.append({"context": context, "qas": qas})
    articles = [paragraphs[:2], paragraphs[2:]]
    data = [{"title": f"T{i}", "paragraphs": part} for i, part in enumerate(articles)]
    return {"version": "1.1", "data": data}


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder ``squad`` of the official file names."""
    folder = tmp_path_factory.mktemp("data")
    write_json(folder / "squad" / SQUAD.dev, squad_json())
    write_json(folder / "squad" / SQUAD.train, squad_json("t"))
    return folder


def test_reads_questions_in_order(data: Path) -> None:
    questions = read_questions(data / "squad" / SQUAD.dev)
    assert len(questions) == 6
    assert [item.id for item in questions.items] == ["q00", "q01", "q10", "q11", "q20", "q21"]
    assert questions.items[0] == Question(
        "q00", "What was warm?", CONTEXTS[0], ("The film", "film")
    )
    assert [item.context for item in questions.items] == [CONTEXTS[i] for i in (0, 0, 1, 1, 2, 2)]
    assert questions.items[3].answers == ("caf\u00e9", "not")


def test_selections() -> None:
    items = tuple(Question(str(i), "?", "c", ("c",)) for i in range(10))
    questions = Questions(items)
    assert [item.id for item in questions.sample(4).items] == ["0", "2", "5", "7"]
    assert questions.sample(10).items == questions.sample(99).items == items
    assert questions.select([3, 1]).items == (items[3], items[1])


@pytest.mark.parametrize(
    ("name", "count", "gold"),
    [("dev-v1.1-subset.json", 838, 838), ("train-v1.1-subset.json", 2910, 10_052)],
)
def test_real_files(shared: Path, name: str, count: int, gold: int) -> None:
    questions = read_questions(shared / "data" / "squad" / name)
    assert len(questions) == count
    assert sum(len(item.answers) for item in questions.items) == gold
    assert all(text in item.context for item in questions.items for text in item.answers)


def test_offsets_count_characters(tmp_path: Path) -> None:
    context = "\U0001f600 \u201ce\u0301\u201d film"
    value = squad_json()
    value["data"][0]["paragraphs"] = [
        {
            "context": context,
            "qas": [{"id": "x", "question": "?", "answers": [answer(context, "film")]}],
        }
    ]
    questions = read_questions(write_json(tmp_path / "a.json", value))
    assert questions.items[0].answers == ("film",)


@pytest.mark.parametrize("place", [".", "squad"])
def test_finds_the_official_name(data: Path, place: str) -> None:
    (found,) = find_files(data / place, SQUAD, SQUAD.dev)
    assert found == data / place / ("squad" * (place == ".")) / SQUAD.dev


def test_no_file(tmp_path: Path) -> None:
    assert refusal(lambda: find_files(tmp_path, SQUAD, SQUAD.dev)) == (
        f"{tmp_path}: expected one of dev-v1.1.json, dev-v1.1.jsonl, validation.jsonl, "
        "validation-*-of-*.parquet, here or in squad, found none of them"
    )
    missing = tmp_path / "missing"
    assert refusal(lambda: find_files(missing, SQUAD, SQUAD.dev)) == (
        f"{missing}: no such file or folder"
    )
    assert refusal(lambda: read_questions(missing)) == f"{missing}: no such file"


_P = "data[0].paragraphs[1]"
_Q = f"{_P}.qas[0]"


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("", "version", ..., "version: expected str, found nothing"),
        ("", "version", "v2.0", "version: expected '1.1', found 'v2.0'"),
        ("", "version", 1.1, "version: expected str, found 1.1"),
        ("", "data", ..., "data: expected list, found nothing"),
        ("", "data", {}, "data: expected list, found {}"),
        ("", "data", [], "data: expected at least one, found none"),
        ("", "data", [[]], "data[0]: expected an object, found list"),
        ("data[1]", "paragraphs", ..., "data[1].paragraphs: expected list, found nothing"),
        ("data[1]", "paragraphs", [], "data[1].paragraphs: expected at least one, found none"),
        (_P, "context", ..., f"{_P}.context: expected str, found nothing"),
        (_P, "context", None, f"{_P}.context: expected str, found None"),
        (_P, "context", "", f"{_P}.context: expected text, found ''"),
        (_P, "context", " \n", f"{_P}.context: expected text, found ' \\n'"),
        (_P, "context", "a \ud800", f"{_P}.context: expected Unicode text, found '\\ud800'"),
        (_P, "qas", 3, f"{_P}.qas: expected list, found 3"),
        (_P, "qas", [], f"{_P}.qas: expected at least one, found none"),
        (_P, "qas", [1], f"{_P}.qas[0]: expected an object, found int"),
        (_Q, "id", ..., f"{_Q}.id: expected str, found nothing"),
        (_Q, "id", 7, f"{_Q}.id: expected str, found 7"),
        (_Q, "id", "q01", f"{_Q}.id: expected an id of its own, found another 'q01'"),
        (_Q, "question", ..., f"{_Q}.question: expected str, found nothing"),
        (_Q, "question", " ", f"{_Q}.question: expected text, found ' '"),
        (_Q, "answers", ..., f"{_Q}.answers: expected list, found nothing"),
        (_Q, "answers", [], f"{_Q}.answers: expected at least one, found none"),
        (_Q, "answers", [{}], f"{_Q}.answers[0].text: expected str, found nothing"),
        (_Q, "answers", ["x" * 99], f"{_Q}.answers[0]: expected an object, found str"),
        (
            _Q,
            "answers",
            [{"text": "plot"}],
            f"{_Q}.answers[0].answer_start: expected int, found nothing",
        ),
        (
            _Q,
            "answers",
            [{"text": "plot", "answer_start": "35"}],
            f"{_Q}.answers[0].answer_start: expected int, found '35'",
        ),
        (
            _Q,
            "answers",
            [{"text": "plot", "answer_start": True}],
            f"{_Q}.answers[0].answer_start: expected int, found True",
        ),
        (
            _Q,
            "answers",
            [{"text": "dull", "answer_start": 2}, {"text": "dull", "answer_start": 3}],
            f"{_Q}.answers[1].answer_start: expected where 'dull' begins, found 3, 'ull '",
        ),
        (
            _Q,
            "answers",
            [{"text": "caf\u00e9.", "answer_start": -5}],
            f"{_Q}.answers[0].answer_start: expected where 'caf\u00e9.' begins, found -5, ''",
        ),
    ],
)
def test_malformed(tmp_path: Path, place: str, key: str, value: Any, message: str) -> None:
    content = squad_json()
    node: Any = content
    for step in re.findall(r"\w+", place):
        node = node[int(step) if step.isdigit() else step]
    if value is ...:
        del node[key]
    else:
        node[key] = value
    path = write_json(tmp_path / "a.json", content)
    assert refusal(lambda: read_questions(path)) == f"{path}: {message}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"data": NaN]', b"[" * 99999])
def test_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert refusal(lambda: read_questions(path)).startswith(f"{path}: expected ")


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = json.dumps(squad_json())
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    plain = read_questions(write_json(tmp_path / "b.json", squad_json()))
    assert read_questions(path).items == plain.items
    path.write_bytes(text.encode("utf-16"))
    assert refusal(lambda: read_questions(path)).startswith(f"{path}: expected JSON, found an er")


def test_one_id_in_two_files(tmp_path: Path) -> None:
    questions = read_questions(write_json(tmp_path / "a.json", squad_json()))
    name = questions.items[0].id
    message = refusal(lambda: merge_questions([questions, questions]))
    assert message == f"question {name!r}: expected in one file, found in two"


def test_long_findings_are_cut(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", squad_json() | {"data": "x" * 1000})
    assert refusal(lambda: read_questions(path)).endswith("found 'xxx" + "x" * 76 + "...")


# Windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), config_overrides=QA)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    return load_tokenizer(EMBEDDED)


def reference_windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """List start and length of each window of a text of ``tokens`` tokens, like run_squad.py."""
    windows = []
    start = 0
    while start < tokens:
        length = min(tokens - start, room)
        windows.append((start, length))
        if start + length == tokens:
            break
        start += min(length, stride)
    return windows


def plain(tokenizer: Tokenizer, text: str) -> Any:
    """A text's tokens, with nothing added or cut."""
    tokenizer.backend.no_truncation()
    tokenizer.backend.no_padding()
    return tokenizer.backend.encode(text, add_special_tokens=False)


def texts(least: int = 1) -> st.SearchStrategy[str]:
    piece = st.sampled_from(
        [
            *VOCABULARY[5:],
            " ",
            "\u00e9",
            "e\u0301",
            "\u4e2d",
            "\ud55c\uad6d",
            "\u0130",
            "FiLm",
            "\n",
        ]
    )
    return st.lists(piece, min_size=least, max_size=40).map(" ".join) | st.lists(
        piece, min_size=least, max_size=40
    ).map("".join)


@given(
    question=texts().filter(str.strip),
    context=texts().filter(str.strip),
    extra=st.integers(1, 20),
    stride=st.integers(1, 25),
    longest=st.integers(1, 9),
)
@example("x" * 101 + " is it", "the film", 1, 1, 2)
@example("\ud55c\uad6d" * 9, "\ud55c\uad6d", 1, 1, 2)  # pieces of a syllable are tokens
def test_windows(
    embedded: Tokenizer, question: str, context: str, extra: int, stride: int, longest: int
) -> None:
    asked, whole = plain(embedded, question), plain(embedded, context)
    max_length = 3 + min(longest, len(asked.ids)) + extra
    (found,) = embedded.windows([question], [context], max_length, stride, longest)
    kept = found[0].position - 2
    assert kept <= longest
    shares = [a[1] > b[0] for a, b in zip(asked.offsets, asked.offsets[1:], strict=False)]
    if not any(shares):  # unless tokens share a character, which is not cut in two
        assert kept == min(longest, len(asked.ids))
    room = max_length - 3 - kept
    expected = reference_windows(len(whole.ids), room, stride)
    assert [(window.first, len(window.offsets)) for window in found] == expected
    cls, sep = 101, 102
    for window, (start, length) in zip(found, expected, strict=True):
        part = slice(start, start + length)
        head = [cls, *asked.ids[:kept], sep]
        assert list(window.encoded.input_ids) == [*head, *whole.ids[part], sep]
        assert window.encoded.token_type_ids == (0,) * len(head) + (1,) * (length + 1)
        assert window.encoded.truncated == (kept < len(asked.ids))
        assert window.position == len(head)
        assert len(window.encoded.input_ids) <= max_length
        for offset, (begin, end), (next_begin, _) in zip(
            window.offsets,
            whole.offsets[part],
            [*whole.offsets[1:], (len(context), 0)][part],
            strict=True,
        ):
            behind = context[end:next_begin]  # the accents that no token has
            marks = len(behind) - len(behind.lstrip("\u0301\u0302"))
            assert offset == (begin, end + marks)


@pytest.mark.parametrize("normalizer", ["NFC", "NFD", "NFKC", "BertNormalizer"])
def test_answers_keep_their_accents(embedded: Tokenizer, normalizer: str) -> None:
    """Joined to the letter, dropped or a token of their own: an answer has them."""
    backend = tokenizers.Tokenizer.from_str(embedded.backend.to_str())
    backend.normalizer = getattr(tokenizers.normalizers, normalizer)()
    words = ["cafe\u0301", "re\u0301sume\u0301s", "a\u0302\u0301"]
    ((window,),) = replace(embedded, backend=backend).windows(["a"], [" ".join(words)], 99, 1, 9)
    found = " ".join(words)
    starts = [found.index(word) for word in words]
    for start, word in zip(starts, words, strict=True):
        ends = [end for begin, end in window.offsets if start <= begin < start + len(word)]
        assert max(ends) == start + len(word)


def test_windows_of_several_questions(embedded: Tokenizer) -> None:
    """Each as if alone: how far windows overlap depends on the question's length."""
    generator = np.random.default_rng(0)
    words = ["film", "unbelievableness", "the", ",", "caf\u00e9"]

    def text(most: int) -> str:
        return " ".join(generator.choice(words, generator.integers(1, most)).tolist())

    pairs = [(text(20), text(60)) for _ in range(50)]
    together = embedded.windows(*map(list, zip(*pairs, strict=True)), 24, 5, 9)
    alone = [embedded.windows([a], [b], 24, 5, 9)[0] for a, b in pairs]
    assert together == alone
    assert len({len(parts) for parts in together}) > 5
    assert len({parts[0].position for parts in together}) > 5


def test_offsets_are_of_the_original(embedded: Tokenizer) -> None:
    context = "The  Caf\u00e9,\tna\u00efve\u200b \U0001f600 UNBELIEVABLENESS."
    ((window,),) = embedded.windows(["Who?"], [context], 64, 32, 16)
    found = [context[start:end] for start, end in window.offsets]
    assert found == [
        *("The", "Caf\u00e9", ",", "na\u00efve", "\U0001f600", "UNBELIEVABLE", "NESS", ".")
    ]


def test_windows_from_a_vocabulary_file(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    arguments = (["who was funny?"] * 2, CONTEXTS[:2], 20, 3, 5)
    assert load_tokenizer(tmp_path).windows(*arguments) == tokenizer.windows(*arguments)


def test_other_settings_are_left_behind(embedded: Tokenizer) -> None:
    expected = embedded.encode(CONTEXTS, CONTEXTS)
    embedded.windows(["a"], ["b c d e f g"], 6, 1, 5)
    assert embedded.encode(CONTEXTS, CONTEXTS) == expected
    embedded.encode(CONTEXTS, max_length=3)
    ((window,),) = embedded.windows(["a"], ["b c d e f g"], 64, 1, 5)
    assert len(window.offsets) == 6
    assert embedded.windows([], [], 64, 1, 5) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a b"], ["c"], 5, 1, 9), "max_length: expected 6..512 for these questions, found 5"),
        ((["a b"], ["c"], 4, 1, 1), "max_length: expected 5..512 for these questions, found 4"),
        ((["a"], ["c"], 513, 1, 9), "max_length: expected 5..512 for these questions, found 513"),
        ((["a"], ["c"], 64, 0, 9), "doc_stride: expected at least 1, found 0"),
        ((["a"], ["c"], 64, 1, 0), "max_query_length: expected at least 1, found 0"),
        ((["a", " "], ["c", "c"], 64, 1, 9), "text 2: expected words, found ' '"),
        ((["a"], [""], 64, 1, 9), "text 1: expected words, found ''"),
        ((["a"], ["\x00"], 64, 1, 9), "text 1: expected a context with words, found '\\x00'"),
        ((["a"], ["b", "c"], 64, 1, 9), "expected as many pairs as texts, found 2/1"),
        (("a", ["b"], 64, 1, 9), "questions: expected a list of texts, found one text"),
    ],
)
def test_bad_windows(embedded: Tokenizer, arguments: Any, message: str) -> None:
    assert refusal(lambda: embedded.windows(*arguments)) == message


# Spans


def windows_of(context: str, room: int, stride: int, position: int = 2) -> list[Window]:
    """Windows on a context whose tokens are its characters that are no spaces."""
    offsets = [(i, i + 1) for i, character in enumerate(context) if character != " "]
    return [
        Window(
            EncodedText((0,) * (position + length + 1), (0,) * (position + length + 1), False),
            position,
            start,
            tuple(offsets[start : start + length]),
        )
        for start, length in reference_windows(len(offsets), room, stride)
    ]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 25))
def test_most_context(tokens: int, room: int, stride: int) -> None:
    windows = windows_of("x" * tokens, room, stride)
    found = most_context(windows)
    assert [len(flags) for flags in found] == [len(window.offsets) for window in windows]
    for token in range(tokens):
        scores = {}
        for number, window in enumerate(windows):
            place, length = token - window.first, len(window.offsets)
            if 0 <= place < length:
                scores[number] = min(place, length - 1 - place) + length / 100
        best = max(scores, key=lambda number: (round(scores[number], 6), -number))
        holders = [
            number
            for number, window in enumerate(windows)
            if 0 <= token - window.first < len(window.offsets)
            and found[number][token - window.first]
        ]
        assert holders == [best]


def reference_answers(
    context: str,
    windows: Sequence[Window],
    logits: Sequence[np.ndarray],
    n_best: int,
    longest: int,
) -> list[tuple[str, int, int, float, float, float]]:
    """The answers by their definition, one span after another."""
    spans = []
    usable = most_context(windows)
    for window, array, flags in zip(windows, logits, usable, strict=True):
        for i, (start, _) in enumerate(window.offsets):
            for j, (_, end) in enumerate(window.offsets):
                if flags[i] and i <= j < i + longest:
                    first = float(array[window.position + i, 0])
                    last = float(array[window.position + j, 1])
                    spans.append((-(first + last), start, end, first, last))
    distinct: list[Any] = []
    for span in sorted(spans):
        text = context[span[1] : span[2]]
        if text not in [other[0] for other in distinct] and len(distinct) < n_best:
            distinct.append((text, *span[1:]))
    weights = [math.exp(a + b - distinct[0][3] - distinct[0][4]) for *_, a, b in distinct]
    return [(*one, w / math.fsum(weights)) for one, w in zip(distinct, weights, strict=True)]


@st.composite
def scored_windows(draw: st.DrawFn) -> tuple[str, list[Window], list[np.ndarray]]:
    context = draw(st.text("ab .", min_size=1, max_size=24).filter(str.strip))
    windows = windows_of(context, draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    # Few values, so that there are ties; some far apart.
    number = st.sampled_from([-1e30, -7.5, -1.0, 0.0, 0.25, 1.0, 1.0 + 2**-23, 3.0, 90.0])
    logits = []
    for window in windows:
        size = 2 * len(window.encoded.input_ids)
        values = draw(st.lists(number, min_size=size, max_size=size))
        logits.append(np.float32(values).reshape(-1, 2))
    return context, windows, logits


@given(scored_windows(), st.integers(1, 8), st.integers(1, 6))
def test_best_answers(
    case: tuple[str, list[Window], list[np.ndarray]], n_best: int, longest: int
) -> None:
    context = case[0]
    found = best_answers(*case, n_best, longest)
    expected = reference_answers(*case, n_best, longest)
    assert 1 <= len(found) == len(expected) <= n_best
    for one, (text, start, end, first, last, probability) in zip(found, expected, strict=True):
        assert (one.text, one.start, one.end) == (text, start, end)
        assert (one.start_logit, one.end_logit) == (first, last)
        assert context[one.start : one.end] == one.text
        assert one.probability == pytest.approx(probability, rel=1e-12)
    assert math.fsum(one.probability for one in found) == pytest.approx(1, rel=1e-12)


def test_question_and_specials_are_no_answer() -> None:
    (window,) = windows_of("abc", 9, 9)
    logits = np.float32([[9, 9], [9, 9], [0, 0], [1, 0], [0, 2], [9, 9]])
    assert best_answers("abc", [window], [logits])[0].text == "bc"


def test_a_start_is_taken_where_it_has_the_most_context() -> None:
    windows = windows_of("abcdef", 4, 2, position=0)  # abcd, cdef
    assert [flags.tolist() for flags in most_context(windows)] == [
        [True, True, True, False],
        [False, True, True, True],
    ]
    logits = [np.zeros((5, 2), np.float32) for _ in windows]
    logits[0][3, 0] = 9  # d, at the edge of the first window
    assert best_answers("abcdef", windows, logits)[0].text == "a"
    logits[1][1, 0] = 1
    assert best_answers("abcdef", windows, logits)[0].text == "d"


def test_most_answers_have_thirty_tokens() -> None:
    context = "".join(chr(0x100 + i) for i in range(60))
    (window,) = windows_of(context, 99, 9, position=0)
    logits = np.zeros((61, 2), np.float32)
    logits[3, 0] = logits[32, 1] = 5
    assert best_answers(context, [window], [logits])[0].text == context[3:33]
    logits[33, 1] = 6  # one token too far
    found = best_answers(context, [window], [logits])
    assert found[0].text == context[3:33]
    assert len(found) == 20


# Metrics


def official(text: str) -> list[str]:
    """The words that the official script compares, character by character."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    words: list[str] = []
    run = ""
    for character in kept + " ":
        if character == "_" or character.isalnum():  # what \\w is in Python
            run += character
        else:
            words.append(" " if run in ("a", "an", "the") else run)
            words.append(character)
            run = ""
    return "".join(words).split()


def official_f1(gold: list[str], words: list[str]) -> float:
    remaining = list(gold)
    common = 0
    for word in words:
        if word in remaining:
            remaining.remove(word)
            common += 1
    return 2 * common / (len(gold) + len(words)) if common else 0.0


_PIECES = [
    *("a", "an", "the", "A", "THE", "The", "theatre", "another", "banana", "t.h.e", "a.", "(an)"),
    *("1990", "$5", "it's", "its", "\u2019", "\u201cthe\u201d", "the\u2013an", "\u00e9", "e\u0301"),
    *(" ", "\t", "\n", "\u00a0", "\u3000", "\u2009", "\u200b", "\x1c", "\x85", "-", "_", "_the_"),
    *("a\u0301", "\u0130", "\u1e9e", "\u00df", "\ufb01", "\u0663", "\u00b2", "...", "!", "\\"),
    *("\u4e2da", "\u4e2d the", "\U0001f600the", "\u0645\u064e", "\u0915\u094d\u0937"),
]
_ANSWERS = (
    st.lists(st.sampled_from(_PIECES), max_size=6).map("".join)
    | st.lists(st.sampled_from(_PIECES), max_size=6).map(" ".join)
    | st.text(max_size=12)
)


@given(_ANSWERS)
def test_normalized(text: str) -> None:
    assert normalize_answer(text) == " ".join(official(text))


@given(st.lists(st.tuples(st.lists(_ANSWERS, min_size=1, max_size=4), _ANSWERS), min_size=1))
def test_metrics(pairs: list[tuple[list[str], str]]) -> None:
    gold, predictions = map(list, zip(*pairs, strict=True))
    matches = [any(official(a) == official(text) for a in right) for right, text in pairs]
    assert exact_match(gold, predictions) == pytest.approx(sum(matches) / len(pairs))
    shared_words = [
        max(official_f1(official(a), official(text)) for a in right) for right, text in pairs
    ]
    assert answer_f1(gold, predictions) == pytest.approx(sum(shared_words) / len(pairs))


@pytest.mark.parametrize(
    ("gold", "text", "match", "score"),
    [
        (["The Film"], "film.", 1, 1),
        (["theatre"], "atre", 0, 0),
        (["a an the"], "", 1, 0),  # nothing in common, in the script for version 1.1
        (["..."], "the", 1, 0),
        (["film"], "", 0, 0),
        (["no", "red film", "film"], "the red film", 1, 1),
        (["in 1990", "late in 1990 or so"], "late in 1990", 0, 0.8),
        (["b b c"], "b c c", 0, 2 / 3),
        (["\u201cfilm\u201d"], "film", 0, 0),  # only ASCII punctuation goes
        (["red\u00a0film"], "red film", 1, 1),
        (["t-h-e film"], "film", 1, 1),
    ],
)
def test_known_scores(gold: list[str], text: str, match: int, score: float) -> None:
    assert exact_match([gold], [text]) == match
    assert answer_f1([gold], [text]) == pytest.approx(score)
    assert list(ANSWER_METRICS) == ["exact_match", "f1"]


@pytest.fixture(scope="module")
def squad_metrics(transformers: Any) -> Any:
    """The metrics of transformers, which has them up to version 4."""
    name = "transformers.data.metrics.squad_metrics"
    pytest.importorskip(name, reason=f"transformers {transformers.__version__} has no {name}")
    return importlib.import_module(name)


@given(gold=_ANSWERS, text=_ANSWERS)
def test_metrics_as_transformers(squad_metrics: Any, gold: str, text: str) -> None:
    assert normalize_answer(text) == squad_metrics.normalize_answer(text)
    assert exact_match([[gold]], [text]) == squad_metrics.compute_exact(gold, text)
    expected = squad_metrics.compute_f1(gold, text)
    if not normalize_answer(gold) and not normalize_answer(text):
        assert expected == 1  # the script for version 2.0, which knows of no answer
        expected = 0
    assert answer_f1([[gold]], [text]) == pytest.approx(expected)


# The head


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max())


def check_parity(model: Model, peer: Any, torch: Any, batch: Mapping[str, np.ndarray]) -> None:
    ours = model(**batch)
    with torch.no_grad():
        theirs = peer(**{name: torch.from_numpy(array) for name, array in batch.items()})
    tokens = batch["attention_mask"] != 0
    for name in ("start_logits", "end_logits"):
        got = getattr(ours, name)
        assert got.dtype == np.float32
        assert relative(got[tokens], getattr(theirs, name).numpy()[tokens]) <= PARITY
        assert (got[~tokens] == -np.inf).all()


def peer_of(transformers: Any, torch: Any, folder: Path) -> Any:
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    peer = transformers.BertForQuestionAnswering.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return peer.eval()


def random_batches() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    places = np.arange(40)
    masks = [
        places < np.array([[40], [17], [1], [33]]),
        places >= np.array([[0], [23], [39]]),  # padding on the left, position 0 masked
        generator.random((4, 40)) < 0.7,
        np.ones((1, 1), bool),
    ]
    return [
        {
            "input_ids": generator.integers(0, len(VOCABULARY), mask.shape),
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": generator.integers(0, 2, mask.shape),
        }
        for mask in masks
    ]


def test_parity_of_random_weights(
    folder: Path, model: Model, transformers: Any, torch: Any
) -> None:
    peer = peer_of(transformers, torch, folder)
    for batch in random_batches():
        check_parity(model, peer, torch, batch)


@pytest.fixture(scope="module")
def minilm(checkpoints: Path) -> Path:
    return checkpoints / "minilm-squad"


def test_parity_of_a_real_checkpoint(
    minilm: Path, shared: Path, transformers: Any, torch: Any
) -> None:
    model, peer = load(minilm), peer_of(transformers, torch, minilm)
    questions = read_questions(shared / "data" / "squad" / "dev-v1.1-subset.json").sample(4)
    tokenizer = load_tokenizer(minilm)
    batch = tokenizer.batch(
        [item.question for item in questions.items],
        [item.context for item in questions.items],
        384,
    )
    check_parity(model, peer, torch, batch)


def test_real_windows_and_answers(minilm: Path, shared: Path) -> None:
    """Some of a real model's answers are right, and every answer is a part of its context."""
    path = shared / "data" / "squad" / "dev-v1.1-subset.json"
    (result,) = run(prepare(minilm, "squad", path, calibrated=False, limit=6), [PRESETS["fp32"]])
    assert result.metrics["exact_match"] >= 0.5
    questions = read_questions(path)
    for item, best in zip(questions.items, result.answers, strict=False):
        assert best[0].text == item.context[best[0].start : best[0].end]


def test_outputs(model: Model) -> None:
    output = model([[2, 9, 3], [2, 3, 0]], [[1, 1, 1], [1, 1, 0]])
    assert output.logits is None
    assert output.pooler_output is None
    weight, bias = (model.weights[f"qa_outputs.{name}"] for name in ("weight", "bias"))
    expected = output.last_hidden_state @ weight.T + bias
    for column, logits in enumerate((output.start_logits, output.end_logits)):
        assert logits.shape == (2, 3)
        np.testing.assert_allclose(logits[0], expected[0, :, column], rtol=1e-5, atol=1e-6)
        assert logits[1, 2] == -np.inf
    first_masked = model([[2, 9, 3]], [[0, 1, 1]])
    assert first_masked.start_logits[0, 0] == first_masked.end_logits[0, 0] == -np.inf


def test_only_question_answering_has_these_outputs(tmp_path: Path) -> None:
    for kind in ("BertForSequenceClassification", "BertModel"):
        overrides = {"architectures": [kind]}
        other = load(write_checkpoint(tmp_path / kind, config_overrides=overrides))
        output = other([[2, 9, 3]])
        assert output.start_logits is None
        assert output.end_logits is None
        assert refusal(lambda other=other: text_logits(other, "question answering", [TEXT])) == (
            f"{tmp_path / kind}: expected a BertForQuestionAnswering, found {kind}"
        )


TEXT = EncodedText((2, 9, 3), (0, 0, 0), False)


def test_parameters(folder: Path, model: Model, transformers: Any) -> None:
    config = read_config(folder / "config.json")
    assert config.head.name == "question answering"
    shapes = expected_shapes(config, pooler=False)
    assert shapes["qa_outputs.weight"] == (2, 16)
    assert list(shapes) == list(model.weights)
    sizes = {key: value for key, value in CONFIG.items() if isinstance(value, int | float)}
    peer = transformers.BertForQuestionAnswering(transformers.BertConfig(**sizes))
    assert shapes == {
        name.removeprefix("bert."): tuple(tensor.shape)
        for name, tensor in peer.state_dict().items()
    }


def test_a_pooler_is_left_unread(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG | QA, 2, seed=0)
    pooler = {"bert.pooler.dense.weight": np.float32([np.nan])}  # would be refused
    write_tensors(write_checkpoint(tmp_path, config_overrides=QA), tensors | pooler)
    output = load(tmp_path)([[2, 9, 3]])
    assert output.pooler_output is None
    assert output.start_logits is not None


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_the_head_must_be_there(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, config_overrides=QA)
    tensors = random_tensors(CONFIG | QA, 2, seed=0)
    key = f"qa_outputs.{name}"
    shape = tensors[key].shape
    wrong = {**tensors, key: np.zeros((3, *shape[1:]), np.float32)}
    write_tensors(tmp_path, wrong)
    assert refusal(lambda: load(tmp_path)) == (
        f"{tmp_path / 'model.safetensors'}: tensor {key!r}: expected shape {shape} by "
        f"config.json, found {(3, *shape[1:])}"
    )
    del tensors[key]
    write_tensors(tmp_path, tensors)
    assert f"tensor {key!r}: expected shape {shape}, but missing" in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("golden", [False, True])
def test_the_head_goes_through_the_engine(model: Model, golden: bool) -> None:
    """It is seen in calibration, and not quantized."""
    batch = {"input_ids": np.array([[2, 9, 30, 3]])}
    calibration = calibrate(model, [batch], golden)
    assert "qa_outputs:a" in calibration.operands
    assert calibration.channels["qa_outputs"].shape == (16,)
    quantized = apply_recipe(model, PRESETS["e4m3"], calibration, golden)
    assert isinstance(quantized.weights["qa_outputs.weight"], np.ndarray)
    output = quantized(**batch)
    assert output.counts
    assert not any(name.startswith("qa_outputs") for name in output.counts)
    error = relative(output.start_logits, model(**batch).start_logits)
    assert 0 < error < 0.5


# Whole jobs


def job_of(folder: Path, data: Path, **options: Any) -> Job:
    return prepare(folder, "squad", data, **({"max_length": 40} | options))


def test_prepare(folder: Path, tokenizer: Tokenizer, data: Path) -> None:
    job = job_of(folder, data)
    assert job.task is SQUAD
    dev, train = (read_questions(data / "squad" / n) for n in (SQUAD.dev, SQUAD.train))
    assert job.examples == dev

    def windows(questions: Questions) -> list[list[Window]]:
        asked = [item.question for item in questions.items]
        return tokenizer.windows(asked, [item.context for item in questions.items], 40, 128, 64)

    assert job.windows == windows(dev)
    flat = [window.encoded for parts in job.windows for window in parts]
    assert job.encoded == flat
    assert len(job.encoded) > len(job.examples)
    assert job.calibration_texts == [w.encoded for parts in windows(train) for w in parts]
    assert job.truncated == 0
    sample = job_of(folder, data, calibration_samples=2, limit=3)
    assert sample.examples == dev.select(range(3))
    chosen = windows(train.select([0, 3]))
    assert sample.calibration_texts == [w.encoded for parts in chosen for w in parts]


@pytest.mark.parametrize("place", ["squad", "squad/dev-v1.1.json"])
def test_places(folder: Path, data: Path, place: str) -> None:
    assert len(job_of(folder, data / place).examples) == 6


def test_default_length(data: Path, tmp_path: Path) -> None:
    overrides = QA | {"max_position_embeddings": 400}
    long = write_checkpoint(tmp_path, config_overrides=overrides)
    job = prepare(long, "SQuAD", data)
    assert [len(parts) for parts in job.windows] == [1] * 6


def test_cut_questions_are_counted(folder: Path, tmp_path: Path) -> None:
    content = squad_json()
    content["data"][1]["paragraphs"][0]["qas"][1]["question"] = "is it good " * 30
    path = write_json(tmp_path / "dev.json", content)
    job = job_of(folder, path, max_length=90, calibrated=False)
    assert job.truncated == 1
    assert len(job.windows[5]) > 1


def test_evaluate(folder: Path, data: Path, model: Model) -> None:
    job = job_of(folder, data, batch_size=3)
    reference, result = run(job, [PRESETS["fp32"], PRESETS["e4m3"]])
    assert reference.logits.shape == (sum(len(item.input_ids) for item in job.encoded), 2)
    assert reference.logits.dtype == np.float32
    assert np.isfinite(reference.logits).all()
    separate = [model([item.input_ids], None, [item.token_type_ids]) for item in job.encoded]
    expected = np.concatenate(
        [np.stack([one.start_logits[0], one.end_logits[0]], axis=1) for one in separate]
    )
    assert relative(reference.logits, expected) <= PARITY
    begin = 0
    assert isinstance(job.examples, Questions)
    for item, parts, best in zip(job.examples.items, job.windows, reference.answers, strict=True):
        logits = []
        for window in parts:
            count = len(window.encoded.input_ids)
            logits.append(reference.logits[begin : begin + count])
            begin += count
        assert best == best_answers(item.context, parts, logits)
        assert 1 < len(best) <= 20
    for one in (reference, result):
        predicted = [best[0].text for best in one.answers]
        assert one.predictions.tolist() == predicted
        gold = [item.answers for item in job.examples.items]
        assert one.metrics == {
            "exact_match": exact_match(gold, predicted),
            "f1": answer_f1(gold, predicted),
        }
    change = compare_with(reference, result)
    pairs = zip(reference.predictions, result.predictions, strict=True)
    assert change["flips"] == sum(a != b for a, b in pairs)
    difference = result.logits.astype(np.float64) - reference.logits
    size = np.linalg.norm(reference.logits.astype(np.float64))
    assert change["relative_logit_error"] == pytest.approx(np.linalg.norm(difference) / size)
    assert 0 < change["relative_logit_error"] < 1
    assert compare_with(reference, reference) == {"flips": 0, "relative_logit_error": 0.0}


def test_progress_counts_windows(folder: Path, data: Path, model: Model) -> None:
    job = job_of(folder, data, calibrated=False)
    done: list[int] = []
    assert isinstance(job.examples, Questions)
    quantized = apply_recipe(model, PRESETS["fp32"])
    evaluate_task(quantized, SQUAD, job.examples, job.windows, 5, done.append)
    assert sum(done) == len(job.encoded)
    assert done[:-1] == [5] * (len(done) - 1)


def test_golden_does_not_depend_on_the_batch(folder: Path, data: Path) -> None:
    one, other = (
        next(run(job_of(folder, data, limit=3, batch_size=size), [PRESETS["e4m3"]], golden=True))
        for size in (1, 8)
    )
    assert_same_bits(one.logits, other.logits)
    assert one.answers == other.answers


@pytest.mark.parametrize(
    ("task", "kind", "wanted"),
    [
        ("squad", "BertForSequenceClassification", "BertForQuestionAnswering"),
        ("squad", "BertModel", "BertForQuestionAnswering"),
        ("sst2", "BertForQuestionAnswering", "BertForSequenceClassification"),
    ],
)
def test_wrong_head(tmp_path: Path, data: Path, task: str, kind: str, wanted: str) -> None:
    other = write_checkpoint(tmp_path / "m", config_overrides={"architectures": [kind]})
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\n")
    place = data if task == "squad" else tmp_path
    assert refusal(lambda: prepare(other, task, place, calibrated=False)) == (
        f"{other}: expected a {wanted}, found {kind}"
    )


def test_no_training_file(folder: Path, tmp_path: Path, data: Path) -> None:
    path = write_json(tmp_path / "dev-v1.1.json", squad_json())
    assert refusal(lambda: job_of(folder, path)).startswith(
        f"{tmp_path}: expected one of train-v1.1.json, train-v1.1.jsonl, train.jsonl, "
        "train-*-of-*.parquet, here or in squad, found none of them. The training examples are "
    )
    other = data / "squad" / SQUAD.dev
    assert len(job_of(folder, path, calibration_data=other).calibration_texts) > 6


Capture = pytest.CaptureFixture[str]


def command(name: str, folder: Path, data: Path, *more: str) -> list[str]:
    options = ["--task", "squad", "--data", str(data), "--max-length", "40"]
    return [name, str(folder), *options, *more]


def test_command_evaluate(folder: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    answers, report = tmp_path / "answers.json", tmp_path / "report.json"
    files = ["--predictions", str(answers), "--json", str(report)]
    assert main(command("evaluate", folder, data, "--format", "e4m3", *files)) == 0
    assert re.fullmatch(
        rf"{re.escape(str(folder))}  squad  e4m3  6 examples  exact_match \d+\.\d\d  "
        r"f1 \d+\.\d\d  \d+\.\d\d s\n",
        capsys.readouterr().out,
    )
    (result,) = run(job_of(folder, data), [PRESETS["e4m3"]])
    ids = ["q00", "q01", "q10", "q11", "q20", "q21"]
    expected = dict(zip(ids, result.predictions.tolist(), strict=True))
    assert json.loads(answers.read_text()) == expected
    written = json.loads(report.read_text())
    assert written["predictions"] == expected
    assert written["metrics"] == result.metrics
    assert {name: tuple(Answer(**one) for one in best) for name, best in written["n_best"].items()}
    assert written["n_best"]["q11"][0] == vars(result.answers[3][0])
    assert "logits" not in written
    assert len(written["logits_sha256"]) == 64
    assert (written["task"], written["examples"], written["truncated"]) == ("squad", 6, 0)


def test_command_compare(folder: Path, data: Path, capsys: Capture) -> None:
    argv = command("compare", folder, data, "--formats", "int8,e4m3", "--golden", "--limit", "2")
    assert main(argv) == 0
    lines = list(filter(str.strip, capsys.readouterr().out.splitlines()))
    assert lines[0] == f"{folder}, squad, 2 examples"
    cells = [cell.strip() for cell in lines[1].strip("|").split("|")]
    assert cells[:5] == ["format", "exact match", "f1", "flips", "relative logit error"]
    assert [line.split("|")[1].strip() for line in lines[3:]] == ["FP32", "INT8", "E4M3"]


def test_command_info(folder: Path, capsys: Capture) -> None:
    assert main(["info", str(folder)]) == 0
    assert re.search(r"^head +question answering$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-length", "129"], "max_length: expected "),
        (["--calibration-data", "/missing.json"], "/missing.json: no such file"),
        (["--predictions", "/missing/answers.json"], "/missing/answers.json: cannot be written: "),
        (["--task", "squat"], "task: expected one of cola, "),
    ],
)
def test_command_refuses(
    folder: Path, data: Path, more: list[str], message: str, capsys: Capture
) -> None:
    assert main([*command("evaluate", folder, data, "--format", "e4m3"), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bert-numpy: {message}")
    assert ("wnli, squad, stsb-cosine, found 'squat'" in line) == ("squat" in more)


def test_predictions_are_of_questions(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\n")
    options = ["--task", "sst2", "--data", str(tmp_path), "--predictions", str(tmp_path / "p")]
    assert main(["evaluate", EMBEDDED, *options]) == 2
    assert capsys.readouterr().err == (
        "bert-numpy: --predictions: expected task squad, found sst2\n"
    )
    assert not (tmp_path / "p").exists()
