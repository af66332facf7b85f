"""Distillation: never worse than before, deterministic, and an interrupted run goes on to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering

import cases
import tiny
from faster_pruner.errors import OptionError
from faster_pruner.host.spill import Shelf
from faster_pruner.method import distillation
from faster_pruner.method.distillation import accelerated, distil
from faster_pruner.method.lesson import Lesson, Unlabelled, last_of_layers
from faster_pruner.method.training_state import StateFile
from faster_pruner.model.gradients import Observation, gradients, streams
from faster_pruner.model.network import Network
from faster_pruner.model.passes import PassSetting, all_tensors_in
from faster_pruner.objectives.objective import Objective
from faster_pruner.objectives.registry import objective_of
from faster_pruner.options import Distillation

HOW = Distillation(rows=96, epochs=3, learning_rate=3e-3, rows_per_step=8)


def halved(model: Any) -> nn.Module:
    """A model with the first half of the units of every sublayer."""
    sublayers = tiny.make_subject(model).sublayers
    chosen = {s.name: torch.arange((s.units + 1) // 2) for s in sublayers}
    return Network(model, sublayers).copied().shrunk(chosen).model


def lesson(model: Any, how: Distillation = HOW, objective: Objective | None = None, **changes: Any) -> Lesson:
    """Towards a tiny model."""
    own = objective or objective_of(model)
    return Lesson(teacher=model, student=halved(model), objective=own, how=how, seed=0, **changes)


def unlabelled(count: int = 96) -> Unlabelled:
    rows, held = tiny.make_rows(count, seed=1), tiny.make_rows(48, seed=2)
    return Unlabelled(rows=replace(rows, labels=None), held_out=replace(held, labels=None))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def held_out_loss(own: Lesson, rows: Unlabelled) -> float:
    """By hand: the mean KL over the held-out rows."""
    found: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in tiny.make_batches(rows.held_out):  # pyright: ignore[reportArgumentType]
            dense, small = (m(**batch.inputs).logits.log_softmax(-1) for m in (own.teacher, own.student))
            found.append((dense.exp() * (dense - small)).sum(-1))
    return float(torch.cat(found).mean())


def test_it_comes_closer_to_the_dense_model_and_leaves_that_alone() -> None:
    model = tiny.make_model(labels=3)
    own, rows, before = lesson(model), unlabelled(), weights(model)
    shapes = {name: tensor.shape for name, tensor in own.student.state_dict().items()}
    at_first = held_out_loss(own, rows)
    found = distil(own, rows)
    assert found.before == pytest.approx(at_first, rel=1e-4)
    assert found.after == pytest.approx(held_out_loss(own, rows), rel=1e-4)
    assert found.after < 0.7 * found.before
    assert found.kept
    assert (found.rows, found.held_out, found.planned, found.steps) == (96, 48, 36, 36)
    assert found.status == "finished"
    assert [step for step, _ in found.history][-1] == 36
    assert same(before, weights(model))
    assert {name: tensor.shape for name, tensor in own.student.state_dict().items()} == shapes
    assert not own.student.training
    assert all(parameter.grad is None for parameter in own.student.parameters())


@pytest.mark.parametrize("rate", [0.0, 30.0])
def test_what_helps_nothing_is_taken_back(rate: float) -> None:
    """Also where the weights run away."""
    own = lesson(tiny.make_model(), replace(HOW, learning_rate=rate))
    before = weights(own.student)
    found = distil(own, unlabelled())
    assert not found.kept
    assert found.after == found.before
    assert same(before, weights(own.student))


def test_a_loss_that_is_no_number_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = lesson(tiny.make_model())
    before, looks = weights(own.student), iter([0.5, 0.4, float("nan")])
    monkeypatch.setattr(distillation._Judge, "loss", lambda _: next(looks))
    found = distil(own, unlabelled())
    assert "not finite" in found.status
    assert found.steps < found.planned
    assert (found.before, found.after) == (0.5, 0.4)
    assert not same(before, weights(own.student))


def test_a_loss_that_only_rises_ends_it_and_the_best_state_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = lesson(tiny.make_model())
    looks, states = iter([0.5, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]), list[dict[str, torch.Tensor]]()

    def look(_: Any) -> float:
        states.append(weights(own.student))
        return next(looks)

    monkeypatch.setattr(distillation._Judge, "loss", look)
    found = distil(own, unlabelled())
    assert "worse and worse" in found.status
    assert len(found.history) == 5
    assert found.after == 0.3
    assert found.best_step == found.history[0][0]
    assert same(states[1], weights(own.student))


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    model, rows = tiny.make_model(), unlabelled()
    one, other, third = lesson(model), lesson(model), replace(lesson(model), seed=1)
    assert distil(one, rows) == distil(other, rows)
    assert same(weights(one.student), weights(other.student))
    distil(third, rows)
    assert not same(weights(one.student), weights(third.student))


class _Stop(Exception):
    pass


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], None]:
    """Steps raise after so many of them; gives back what ends that."""
    original, count = torch.optim.AdamW.step, [0]

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] > after:
            raise _Stop
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return lambda: monkeypatch.setattr(torch.optim.AdamW, "step", original)


@pytest.mark.parametrize("after", [3, 5, 17, 35])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, keep = tiny.make_model(), unlabelled(), StateFile(tmp_path / "a" / "state.safetensors", "this")
    whole, interrupted, again = lesson(model), lesson(model), lesson(model)
    expected = distil(whole, rows)
    go_on = stopping(monkeypatch, after)
    with pytest.raises(_Stop):
        distil(interrupted, rows, keep=keep)
    go_on()
    assert keep.path.is_file() is (after >= 5)
    steps = list[int]()
    monkeypatch.setattr(distillation, "_look", counting(distillation._look, steps))
    found = distil(again, rows, keep=keep)
    assert found == expected
    assert same(weights(again.student), weights(whole.student))
    # what was kept is not done again
    assert len(steps) == 8 - sum(step <= after for step, _ in expected.history)
    assert not list(tmp_path.rglob("*.partial"))


def counting(look: Callable[..., None], steps: list[int]) -> Callable[..., None]:
    def counted(course: Any, *args: Any, **kwargs: Any) -> None:
        steps.append(course.step)
        look(course, *args, **kwargs)

    return counted


@pytest.mark.parametrize("damage", ["another run", "cut short", "no file of ours", "empty"])
def test_a_file_that_does_not_help_is_written_anew(damage: str, tmp_path: Path) -> None:
    model, rows, path = tiny.make_model(), unlabelled(), tmp_path / "state.safetensors"
    whole = lesson(model)
    expected = distil(whole, rows, keep=StateFile(path, "this"))
    written = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(written[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no file of ours":
        path.write_text("{}")
    own = lesson(model)
    found = distil(own, rows, keep=StateFile(path, "other" if damage == "another run" else "this"))
    assert found == expected
    assert same(weights(own.student), weights(whole.student))


def test_a_disk_that_is_full_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    own, keep = lesson(tiny.make_model()), StateFile(tmp_path / "in the way" / "state.safetensors", "this")
    found = distil(own, unlabelled(), keep=keep)
    assert found.kept
    assert "cannot write" in found.note


def test_it_is_judged_as_it_will_be_stored() -> None:
    model, rows = tiny.make_model(), unlabelled()
    own = lesson(model, dtype=torch.bfloat16)
    found = distil(own, rows)
    assert found.kept
    rounded = copy.deepcopy(own.student)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16().float())
    assert found.after == pytest.approx(held_out_loss(replace(own, student=rounded), rows), rel=1e-4)


@pytest.mark.parametrize("left", [(60.0, 53), (2.0, 16), (1e9, 96)])
def test_a_time_becomes_a_number_of_rows(left: tuple[float, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes .1 s of the dense model and .2 s per step; 48 rows judge, a third of a step each, nine times."""
    seconds, expected = left
    monkeypatch.setattr(distillation, "_timed", lambda *_: (0.1, 0.2))
    own = lesson(tiny.make_model(), Distillation(seconds=seconds, epochs=2, rows_per_step=16))
    found = distil(own, unlabelled())
    assert found.rows == expected


def test_a_time_is_measured_without_changing_anything() -> None:
    model, rows = tiny.make_model(), unlabelled()
    timed, counted = (lesson(model, replace(HOW, rows=n, seconds=s)) for n, s in ((None, 3600.0), (96, None)))
    assert distil(timed, rows) == distil(counted, rows)
    assert same(weights(timed.student), weights(counted.student))


def test_the_state_of_accelerate_is_as_before() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    # other tests train with it, too
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not is_initialized()
    distil(lesson(tiny.make_model()), unlabelled())
    assert not is_initialized()
    try:
        theirs = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=2)
        with accelerated(torch.device("cpu")):
            pass
        assert is_initialized()
        assert theirs.device.type == "cpu"
        assert distil(lesson(tiny.make_model()), unlabelled()).kept
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_without_accelerate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(OptionError, match=r"faster-pruner\[distill\]"):
        distil(lesson(tiny.make_model()), unlabelled())


def test_batches_of_somebodys_own_are_taken_as_they_are() -> None:
    model, rows = tiny.make_model(), unlabelled()
    batches, judges = tiny.make_batches(rows.rows), tiny.make_batches(rows.held_out)  # pyright: ignore
    found = distil(lesson(model), Unlabelled(rows=batches, held_out=judges))
    assert found.rows == 96
    assert found.planned == 3 * len(batches)
    few = distil(
        lesson(model, replace(HOW, rows=batches[0].rows.numel() + 1)), Unlabelled(rows=batches, held_out=judges)
    )
    assert few.rows == batches[0].rows.numel()


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (lambda: tiny.make_model(labels=1), 1),
        (lambda: tiny.make_model(labels=3, problem_type="multi_label_classification"), 3),
        (lambda: tiny.make_tagger(), 5),
        (lambda: tiny.make_model(auto=AutoModelForQuestionAnswering), 2),
        (lambda: tiny.make_model(auto=AutoModelForCausalLM, is_decoder=True), 2),
    ],
    ids=["regression", "multi-label", "tokens", "answering", "language"],
)
def test_every_objective_is_distilled(model: Callable[[], Any], labels: int) -> None:
    del labels
    own = lesson(model())
    found = distil(own, unlabelled())
    assert found.kept
    assert found.after < 0.9 * found.before


def test_emptied_sublayers_are_no_matter() -> None:
    model = tiny.make_model()
    sublayers = tiny.make_subject(model).sublayers
    chosen = {s.name: torch.arange(0 if i % 2 else s.units) for i, s in enumerate(sublayers)}
    student = Network(model, sublayers).copied().shrunk(chosen).model
    found = distil(replace(lesson(model), student=student), unlabelled())
    assert found.kept


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_streams_are_what_the_model_normalises(name: str) -> None:
    model: Any = tiny.make_model(name)
    layers = last_of_layers(tiny.make_subject(model).sublayers)
    assert len(layers) == 2
    batch = tiny.make_batches(tiny.make_rows(6))[0]
    with torch.no_grad(), streams(model, layers) as seen:
        hidden = model(**batch.inputs, output_hidden_states=True).hidden_states[1:]
    for layer, expected in zip(layers, hidden, strict=True):
        found = torch.nn.functional.layer_norm(seen[layer.name], (24,), eps=1e-12)
        # at random the norms have a gain of 1 and no bias
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", cases.NAMES)
def test_streams_of_every_join_are_those_of_the_calibration_and_have_gradients(name: str) -> None:
    case = cases.make(name)
    hooks = hooks_of(case.model)
    batch, seen = cases.batch_of(cases.inputs_of(name)), dict[str, torch.Tensor]()

    def report(sublayer: Any, own: Observation) -> None:
        # at once: the model may add something to y where it lies
        seen[sublayer.name] = own.y.clone() if own.base is None else own.base + own.y

    with gradients(case.model, case.sublayers, report, start=len(case.sublayers)):
        returned = case.model(**batch.inputs)
    with streams(case.model, case.sublayers) as found:
        again = case.model(**batch.inputs)
    assert all(torch.equal(*pair) for pair in zip(all_tensors_in(returned), all_tensors_in(again), strict=True))
    assert hooks_of(case.model) == hooks
    assert found.keys() == seen.keys()
    for sublayer in case.sublayers:
        assert torch.allclose(found[sublayer.name], seen[sublayer.name], atol=1e-6)
    for layer in last_of_layers(case.sublayers):
        weight = layer.projection(case.model).weight
        assert isinstance(weight, nn.Parameter)
        (gradient,) = torch.autograd.grad(found[layer.name].square().sum(), weight, retain_graph=True)
        assert float(gradient.abs().sum()) > 0


def test_matching_streams_comes_closer_too() -> None:
    model, rows = tiny.make_model(labels=3), unlabelled()
    layers = last_of_layers(tiny.make_subject(model).sublayers)
    own = replace(lesson(model), layers=layers)
    judges = tiny.make_batches(rows.held_out)  # pyright: ignore[reportArgumentType]

    def gap() -> float:
        with torch.no_grad():
            pairs = [[own.streams_of(m, batch) for m in (own.teacher, own.student)] for batch in judges]
        return float(sum((a - b).square().sum() for one, other in pairs for a, b in zip(one, other, strict=True)))

    before, head = gap(), own.student.get_submodule("classifier").state_dict()
    found = distil(own, rows)
    assert found.kept
    assert gap() < 0.8 * before
    # what no stream depends on gets no gradient
    assert same(head, own.student.get_submodule("classifier").state_dict())
    again = replace(lesson(model), layers=layers)
    assert distil(again, rows) == found
    assert same(weights(again.student), weights(own.student))


def test_gradients_go_through_what_branches_are_added_to() -> None:
    """The stream after the last layer depends on all weights before it."""
    model: Any = tiny.make_model()
    last = last_of_layers(tiny.make_subject(model).sublayers)[-1]
    batch = tiny.make_batches(tiny.make_rows(6))[0]
    with streams(model, [last]) as seen:
        model(**batch.inputs)
        seen[last.name].square().mean().backward()
    embeddings = model.base_model.embeddings.word_embeddings.weight.grad
    assert embeddings is not None
    assert float(embeddings.abs().sum()) > 0


@pytest.mark.parametrize("limit", [0, 20_000])
def test_streams_that_memory_has_no_room_for_are_computed_again(limit: int) -> None:
    model, rows = tiny.make_model(), unlabelled()
    layers = last_of_layers(tiny.make_subject(model).sublayers)
    roomy, narrow = Shelf(2**30), Shelf(limit)
    one, other = (replace(lesson(model), layers=layers, setting=PassSetting(shelf=shelf)) for shelf in (roomy, narrow))
    assert distil(one, rows) == distil(other, rows)
    assert same(weights(one.student), weights(other.student))
    # what was reserved for them is free again; predictions are small, and stay
    assert roomy.held < 20_000
    assert narrow.held <= limit
