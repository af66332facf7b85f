"""Many tokens within little memory: hidden states and suspended forwards go through files, and no bit changes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import Batch, EncodedRows, adopt, pack
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Subject
from faster_pruner.method.memory import Tokens, suspended_bytes
from faster_pruner.model.describe import describe
from faster_pruner.model.tail import _PROVED
from faster_pruner.objectives import parts
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import PRESETS, CalibrationOptions

CPU = torch.device("cpu")


def _classifier() -> tuple[Subject, EncodedRows]:
    return tiny.make_subject(tiny.make_model()), tiny.make_rows(600, longest=40)


def _llama() -> tuple[Subject, list[Batch]]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tiny.VOCABULARY, **sizes, **heads)).eval()
    rows = EncodedRows(tokens=tiny.make_rows(400, longest=40).tokens, labels=None, padding={"input_ids": 0})
    batches = adopt([batch.inputs for batch in pack(rows, tokens_per_batch=512, device=CPU)], CPU)
    return Subject(model, describe(model, batches[0].inputs).sublayers, objective_of(model)), batches


@pytest.mark.parametrize("macs", [0.5, 0.2])
@pytest.mark.parametrize("make", [_classifier, _llama])
def test_a_tiny_shelf_holds_many_tokens(make: Any, macs: float) -> None:
    """A hundredth of what the hidden states take, in one round and in two with a descent."""
    subject, rows = make()
    method, weights = PRESETS["default"], list[dict[str, torch.Tensor]]()
    kept = 0
    for limit in (sys.maxsize, 20_000):
        options = CalibrationOptions(memory_limit=limit, tokens_per_batch=512, precision="float32")
        calibrated = calibrate(subject, rows, method, options)
        shelf = calibrated.data.setting.shelf
        weights.append(cut(calibrated, Budget(macs=macs), method).model.state_dict())
        if limit == sys.maxsize:
            assert shelf.spilled == 0
            # nothing of the forwards that are over, in one round or two
            kept = shelf.held
            every = [calibrated.statistics[s.name] for s in calibrated.sublayers]
            assert kept == sum(tensor.nbytes for own in every for tensor in (*own.targets, *own.sources))
            assert Tokens.of(calibrated.data.batches).real > 8000
        else:
            assert kept > 100 * limit
            assert shelf.held <= limit
            # targets and producer inputs once, and the suspended forwards at every stop
            assert shelf.spilled > 2 * kept
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_suspended_forwards_are_the_last_to_go_to_files() -> None:
    """With room for them and no more, hidden states go to files once, and nothing is written at the stops."""
    subject, rows = _classifier()
    # nobody holds the attention matrices then
    subject.model.set_attn_implementation("sdpa")  # pyright: ignore[reportCallIssue]
    options = CalibrationOptions(tokens_per_batch=512, precision="float32")
    free = calibrate(subject, rows, PRESETS["default"], options)
    kept, tokens = free.data.setting.shelf.held, Tokens.of(free.data.batches)
    room = suspended_bytes(free.sublayers, tokens.padded, item=4)
    for share in (1, 2):
        tight = calibrate(subject, rows, PRESETS["default"], replace(options, memory_limit=room // share))
        shelf = tight.data.setting.shelf
        assert (shelf.held, shelf.spilled) == (0, kept)
        cut(tight, Budget(macs=0.5), PRESETS["default"])
        assert (shelf.spilled == kept) == (share == 1)


def test_predictions_in_parts_are_tried_before_the_model_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that somebody watched would be a second look at the first batch, or be taken for a layer that repeats."""
    found: list[dict[str, torch.Tensor]] = []
    for most in (1 << 24, 16 * tiny.VOCABULARY):
        monkeypatch.setattr(parts, "MOST_VALUES", most)
        subject, batches = _llama()
        calibrated = calibrate(subject, batches[:20], PRESETS["default"], CalibrationOptions(precision="float32"))
        own = calibrated.statistics.sublayers
        # at once there is nothing to try
        assert _PROVED.get(subject.model, False) == (most < 1 << 24)
        assert {len(each.read) for each in own.values()} == {20}
        found.append({name: each.x.plain() for name, each in own.items() if each.x is not None})
        # what is left of the model is new to everybody in the second round
        cut(calibrated, Budget(macs=0.2), PRESETS["default"])
    assert found[0].keys() == found[1].keys() != set()
    for name, moment in found[0].items():
        torch.testing.assert_close(found[1][name], moment)
