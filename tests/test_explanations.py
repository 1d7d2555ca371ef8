"""Which explanation is the best, and parameters that are read off codes: numbers by hand."""

import dataclasses

import numpy as np
import pytest

from npfp8 import E4M3FN
from npfp8.mistakes import Explanation, best_explanation, fitted_mistakes
from npfp8.vectors import check_results, make_vectors


def best(found, **known):
    """The best explanation of what should be zeros."""
    right, found = np.zeros(len(found), int), np.array(found)
    results = ((name, None if codes is None else np.array(codes)) for name, codes in known.items())
    return best_explanation(right, found, results, np.not_equal)


def test_right_results_that_would_be_wrong_count_against_a_mistake():
    found = [1, 1, 1, 1, 0, 0, 0]
    more, less = [1, 1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0]
    expected = Explanation(4, partial="less", explained=2)
    assert best(found, more=more, less=less) == best(found, less=less, more=more) == expected
    assert best(found, more=more) == Explanation(4, "", "more", 3, 2)
    assert best(found, more=more).text() == (
        "more explains 3 of 4 wrong cases, but not 2 right ones"
    )
    as_many = [1, 1, 0, 0, 1, 1, 0]
    assert best(found, as_many=as_many) == Explanation(4)
    assert best(found, as_many=as_many).text() == ""


def test_the_first_mistake_that_explains_everything_is_the_cause():
    found = [1, 2, 0]
    assert best(found, part=[1, 0, 0], none=None, whole=found, other=found) == Explanation(
        2, cause="whole", explained=2
    )
    assert best([0, 0], whole=[0, 0]) == Explanation(0)


def test_the_first_of_two_partial_mistakes_is_named():
    assert best([1, 1, 1], first=[1, 0, 0], second=[0, 1, 0]).partial == "first"


@pytest.mark.parametrize(
    ("name", "x", "found", "made"),
    [
        # 1 is 0x38, 2 is 0x40, 3 is 0x44: at most 2, whatever the sign; NaN stays.
        ("saturation at too small a value", [1, 2, 3, -448, np.nan],
         [0x38, 0x40, 0x40, 0xC0, 0x7F], [0x38, 0x40, 0x40, 0xC0, 0x7F]),
        # From 96 on the largest value, also where the code found is another one.
        ("saturation from too small a value on", [88, 96, -128, 112, 448],
         [0x6B, 0x7E, 0xFE, 0x6E, 0x7E], [0x6B, 0x7E, 0xFE, 0x7E, 0x7E]),
        # Up to 0.25 zero, of either sign, also where the code found is another one.
        ("zero up to too large a value", [0.125, -0.25, 0.1875, 0.28125, 0],
         [0, 0x80, 0x24, 0x29, 0], [0, 0x80, 0, 0x29, 0]),
    ],
)  # fmt: skip
def test_parameters_are_read_off_the_codes(name, x, found, made):
    x, found = np.float32(x), np.uint8(found)
    fit = dict(fitted_mistakes(E4M3FN))[name]
    assert fit(x, found).tolist() == made


def test_random_bits_of_other_vectors_are_refused():
    vectors = make_vectors(E4M3FN, "stochastic-8", "bfloat16")
    results = dataclasses.replace(vectors, third=vectors.codes, column="found")
    assert check_results(results).wrong == 0
    other = vectors.random_bits.copy()
    other[6] ^= 1
    with pytest.raises(ValueError, match="case 7: expected "):
        check_results(dataclasses.replace(results, random_bits=other))
