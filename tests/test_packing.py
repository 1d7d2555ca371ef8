"""Packing: the tokens that are computed, their attention groups, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bert_numpy import BertNumpyError
from bert_numpy.model.packing import pack, take_rows

Mask = np.ndarray

_SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 9))


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Any pattern of tokens with at least one in a row: padding on either side, holes."""
    mask = draw(hnp.arrays(bool, draw(_SHAPES)))
    for row in mask:
        if not row.any():
            row[draw(st.integers(0, row.size - 1))] = True
    return mask


@given(mask=masks())
def test_tokens_are_the_mask_and_position_0(mask: Mask) -> None:
    packing = pack(mask)
    expected = [
        i * mask.shape[1] + j
        for i in range(mask.shape[0])
        for j in range(mask.shape[1])
        if mask[i, j] or j == 0
    ]
    assert packing.tokens.tolist() == expected
    assert packing.shape == mask.shape
    assert packing.tokens[packing.first].tolist() == [
        i * mask.shape[1] for i in range(mask.shape[0])
    ]


@given(mask=masks())
def test_each_computed_token_attends_to_its_sequences_tokens(mask: Mask) -> None:
    packing = pack(mask)
    length = mask.shape[1]
    assert sorted(row for group in packing.groups for row in group.rows) == list(range(len(mask)))
    keys_of: dict[int, list[int]] = {}
    for group in packing.groups:
        assert len(group.queries) == len(group.keys)
        for row, queries, keys in zip(group.rows, group.queries, group.keys, strict=True):
            assert (packing.tokens[keys] // length == row).all()
            for query in queries.tolist():
                assert query not in keys_of
                keys_of[query] = packing.tokens[keys].tolist()
    for row, token in enumerate(packing.tokens.tolist()):
        sequence = token // length
        expected = (sequence * length + np.flatnonzero(mask[sequence])).tolist()
        assert keys_of.pop(row) == expected
    assert not keys_of


@given(mask=masks())
def test_sequences_of_equal_counts_share_a_group(mask: Mask) -> None:
    groups = pack(mask).groups
    shapes = [(group.queries.shape[1], group.keys.shape[1]) for group in groups]
    assert len(set(shapes)) == len(shapes)
    assert sum(len(group.queries) for group in groups) == len(mask)


@given(mask=masks(), hidden=st.integers(1, 3))
def test_take_then_unpack_keeps_what_is_computed(mask: Mask, hidden: int) -> None:
    packing = pack(mask)
    padded = np.arange(1, mask.size + 1).reshape(mask.shape)
    taken = packing.take(padded)
    assert taken.tolist() == (packing.tokens + 1).tolist()
    unpacked = packing.unpack(np.repeat(taken[:, None], hidden, axis=1).astype(np.float32))
    computed = mask | (np.arange(mask.shape[1]) == 0)
    assert unpacked.dtype == np.float32
    assert unpacked.shape == (*mask.shape, hidden)
    for column in range(hidden):
        np.testing.assert_array_equal(unpacked[..., column], np.where(computed, padded, 0))


@given(mask=masks())
def test_the_mask_is_not_changed(mask: Mask) -> None:
    before = mask.copy()
    pack(mask)
    np.testing.assert_array_equal(mask, before)


@given(mask=masks(), data=st.data())
def test_a_row_without_tokens_is_named(mask: Mask, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(mask) - 1))
    mask[row:] = False
    with pytest.raises(BertNumpyError) as caught:
        pack(mask)
    message = f"attention_mask: expected a token in each row, found none in row {row}"
    assert str(caught.value) == message


def test_an_example() -> None:
    packing = pack(np.array([[0, 0, 1], [1, 1, 0], [1, 1, 0]], bool))
    assert packing.tokens.tolist() == [0, 2, 3, 4, 6, 7]
    assert packing.first.tolist() == [0, 2, 4]
    found = [(group.queries.tolist(), group.keys.tolist()) for group in packing.groups]
    assert found == [([[0, 1]], [[1]]), ([[2, 3], [4, 5]], [[2, 3], [4, 5]])]


@given(mask=masks())
def test_take_rows_is_indexing(mask: Mask) -> None:
    packing = pack(mask)
    packed = np.random.default_rng(0).standard_normal((packing.tokens.size, 6), np.float32)
    for group in packing.groups:
        for rows in (group.queries, group.keys):
            assert (np.diff(rows.reshape(-1)) > 0).all()
            np.testing.assert_array_equal(take_rows(packed, rows), packed[rows])


def test_take_rows_copies_nothing_of_sorted_texts() -> None:
    lengths = np.array([9, 9, 7, 4, 4, 4])
    packing = pack(np.arange(9) < lengths[:, None])
    packed = np.zeros((packing.tokens.size, 6), np.float32)
    groups = packing.groups
    assert len(groups) == 3
    assert all(np.shares_memory(take_rows(packed, group.keys), packed) for group in groups)
