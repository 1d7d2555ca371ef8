"""The search for causes leaves out what cannot explain a tensor: the reports stay the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bert_numpy.kit import Kit, diagnosis, open_kit, verify
from bert_numpy.kit.diagnosis import _Sample
from npfp8.formats import FORMATS, FloatFormat
from npfp8.mistakes import encoder_mistakes

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def kit() -> Kit:
    return open_kit()


def partly_wrong(kit: Kit) -> Arrays:
    """Codes of which a share is truncated, or wrong in the last bit, where truncation shows."""
    rng = np.random.default_rng(3)
    shares = iter(np.tile([1.0, 0.9, 0.7, 0.6, 0.4, 0.0], 4))
    found = {}
    for name, tensor in kit.tensors.items():
        fmt = FORMATS.get(tensor.fmt)
        is_quotient = tensor.operation == "quantize" and "axis" not in tensor.attributes
        of_codec = tensor.operation == "encode" and name.endswith("/nearest-saturating")
        if not ((is_quotient and tensor.level == "operator") or of_codec):
            continue
        if not isinstance(fmt, FloatFormat) or (share := next(shares, None)) is None:
            continue
        inputs, right = kit.inputs(name), kit.arrays[name]
        with np.errstate(all="ignore"):
            x = np.float32(inputs["x"] / inputs.get("scale", np.float32(1)))
            truncated = dict(encoder_mistakes(fmt))["truncation"](x)
        wrong = (truncated != right) & np.isfinite(x)
        noisy = np.where(rng.random(x.shape) < share, truncated, right ^ np.uint8(1))
        found[name] = np.where(wrong, noisy, right).astype(right.dtype)
    return found


def test_samples_and_repetitions_left_out_change_no_report(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = partly_wrong(kit)
    for name in ("operator/gemm-ties/sum", "operator/layer_norm-e4m3/y"):
        if name in kit.arrays:
            found[name] = kit.arrays[name] + np.float32(1)
    excluded: list[bool] = []
    excludes = _Sample.excludes

    def counted(sample: _Sample, defect: object) -> bool:
        excluded.append(excludes(sample, defect))  # type: ignore[arg-type]
        return excluded[-1]

    monkeypatch.setattr(_Sample, "excludes", counted)
    quick = verify(kit, found)
    assert sum(excluded) > len(excluded) / 2 > 300
    assert not all(excluded)
    assert {len(item.causes) > 0 for item in quick.differences} == {True, False}
    assert any(item.partial and item.partial[0].cause == "truncation" for item in quick.differences)
    monkeypatch.setattr(diagnosis, "_sample", lambda *_: None)
    monkeypatch.setattr(diagnosis, "_are_at_hand", lambda *_: False)
    whole = verify(kit, found)
    assert json.dumps(quick.as_json()) == json.dumps(whole.as_json())
