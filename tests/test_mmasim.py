"""The accumulators of tensor cores are MMA-Sim's: a share of scripts/compare_mmasim.py."""

from __future__ import annotations

import re
from collections import Counter
from types import ModuleType

import numpy as np
import pytest
from conftest import load_script

from npfp8 import ACCUMULATORS, E5M2FNUZ, QuantizedTensor, matmul

#: An instruction and pair of types has one tile at least, an accumulator one of each kind of
#: data. The script takes 200 of each instruction.
KINDS = 10


@pytest.fixture(scope="module")
def script(mmasim: ModuleType) -> ModuleType:
    return load_script("compare_mmasim")


def test_every_accumulator_and_no_instruction_is_left_out(script: ModuleType) -> None:
    rows, missing = script.all_instructions()
    of_tensor_cores = {name for name, how in ACCUMULATORS.items() if how.is_tensor_core}
    # These two are several of MMA-Sim's instructions.
    assert of_tensor_cores - {row.accumulator for row in rows} == {"hopper", "hopper-mma-sync"}
    assert len(rows) == len(set(rows)) == 211
    named = ["Volta: steps of 4", "f64", "tf32", "CDNA1", "CDNA2", "f32", "xf32"]
    assert all(any(why.startswith(name) for name in named) for why in missing)
    for row in rows:  # an accumulator of the numbers that MMA-Sim has
        how, numbers = ACCUMULATORS[row.accumulator], vars(row.operation().arithmetic_op)
        assert (how.step, how.fraction_bits) == (numbers["L_max"], numbers["F"])
        assert how.least_exponent == numbers.get("e_zero", -126)


def test_the_bits_are_mmasims(script: ModuleType) -> None:
    rows, _ = script.all_instructions()
    instructions = Counter(row.accumulator for row in rows)
    total: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for row in rows:
        for _ in range(-(-KINDS // instructions[row.accumulator])):
            counts, first = script.compared(row, seen[row.accumulator], seed=1)
            assert not first, (row, first)
            seen[row.accumulator] += 1
            total.update(counts)
    assert min(seen.values()) >= KINDS == len(script.KINDS) == len(script.FLOAT_KINDS)
    assert total["special"] > 1000
    assert total["different"] == 0


@pytest.mark.parametrize("k", [1, 15, 16, 17, 31, 33])
def test_a_last_step_of_one_product(script: ModuleType, k: int) -> None:
    """It has no product of odd k."""
    row = next(row for row in script.all_instructions()[0] if row.accumulator == "cdna3")
    assert (row.a, row.b) == ("E5M2FNUZ", "E5M2FNUZ")
    a, b = script.draw_operands(
        "uniform", (E5M2FNUZ, E5M2FNUZ), (8, k, 9), np.random.default_rng(k)
    )
    np.testing.assert_array_equal(script.product(row, a, b), script.chained(row, a, b))


def test_an_infinite_accumulator_stays(script: ModuleType) -> None:
    """MMA-Sim drops it in CDNA3's rule: the difference that is explained, and counted."""
    codes = np.full((1, 32), E5M2FNUZ.max_code, np.uint8)
    codes[0, 0] = E5M2FNUZ.nan_code
    a = QuantizedTensor(codes, 1.0, E5M2FNUZ)
    row = next(row for row in script.all_instructions()[0] if row.accumulator == "cdna3")
    assert np.isnan(matmul(a, a.mT, "cdna3"))
    assert np.isfinite(script.chained(row, a, a))
    assert np.isnan(script.chained(row, a, a, keep=True))


def test_a_fault_is_found(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in script.all_instructions()[0] if row.accumulator == "hopper-fast")
    wrong = row._replace(accumulator="ada")
    counts, first = script.compare(wrong, tiles=10, seed=0)
    assert counts["different"] > 10
    assert re.match(r"\w+ \d+x\d+x\d+ at \(.*\): npfp8 0x[0-9a-f]{8}, MMA-Sim 0x", first)
