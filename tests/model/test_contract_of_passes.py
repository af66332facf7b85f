"""The contract of `test_contract`, second half: what passes over a model see of its sublayers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
from cases import Case, batch_of, inputs_of
from faster_pruner.data.batches import Batch
from faster_pruner.host import mapped
from faster_pruner.model.gradients import Observation, gradients
from faster_pruner.model.lockstep import Arrival, lockstep
from faster_pruner.model.spec import Sublayer

SIZES = ("whole", "uneven", "least")


@pytest.fixture(params=cases.ONCE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SIZES)
def case(name: str, request: pytest.FixtureRequest) -> Case:
    made = cases.make(name)
    if request.param == "uneven":
        return made.shrunk(cases.uneven(made.sublayers))
    if request.param == "least":
        return made.shrunk(cases.emptied(made.sublayers, {s.name for s in made.sublayers}))
    return made


@contextmanager
def listening(model: nn.Module, paths: dict[str, str]) -> Generator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """By key: the first input and the output of every call of the module at a path, with plain hooks."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in paths}

    def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor, key: str) -> Tensor:
        calls[key].append((args[0], y))
        # the model may write into what it gets
        return y.clone()

    handles = [
        model.get_submodule(path).register_forward_hook(lambda module, args, y, key=key: hook(module, args, y, key))
        for key, path in paths.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def projections(case: Case) -> dict[str, str]:
    """Paths of all output projections."""
    return {s.name: s.parts.projection for s in case.sublayers}


def in_order(case: Case, inputs: dict[str, Tensor]) -> list[Sublayer]:
    """The sublayers as the model runs them, each of which it has to run once."""
    order: list[str] = []
    handles = [
        s.projection(case.model).register_forward_pre_hook(lambda m, args, key=s.name: order.append(key))
        for s in case.sublayers
    ]
    cases.logits_of(case.model, inputs)
    for handle in handles:
        handle.remove()
    assert sorted(order) == sorted(s.name for s in case.sublayers)
    return sorted(case.sublayers, key=lambda s: order.index(s.name))


def by_autograd(case: Case, inputs: dict[str, Tensor], cotangents: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Per sublayer with units: x, y, dL/dx and dL/dy, of plain autograd."""
    with listening(case.model, {s.name: s.parts.projection for s in case.sublayers if s.units}) as calls:
        logits = case.model(**inputs).logits
    seen = {key: pair for key, (pair,) in calls.items()}
    if not seen:
        return {}
    wanted = [tensor for pair in seen.values() for tensor in pair]
    found = torch.autograd.grad(logits, wanted, cotangents)
    return {key: (*seen[key], *found[2 * i : 2 * i + 2]) for i, key in enumerate(seen)}


def observed(
    case: Case, name: str, sublayers: list[Sublayer], inputs: dict[str, Tensor], cotangents: Tensor, *, start: int = 0
) -> tuple[dict[str, Observation], list[str]]:
    """What `gradients` reports of the second of two batches: by name, and the names in the order of the reports."""
    seen: dict[str, Observation] = {}
    order: list[str] = []

    def report(sublayer: Sublayer, observation: Observation) -> None:
        order.append(sublayer.name)
        seen[sublayer.name] = observation

    with gradients(case.model, sublayers, report, start=start):
        for batch in (inputs_of(name, seed=9, rows=2), inputs):
            order.clear()
            logits = case.model(**batch).logits
            if logits.requires_grad:
                logits.backward(cotangents[: logits.shape[0]])
            assert sorted(order) == sorted(s.name for s in sublayers)
    return seen, order


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_layers_show_when_they_are_run_again_is_the_same(case: Case, name: str, share: float) -> None:
    """With weights in files, layers are run again in the backward: everything is as without, to the last bit."""
    inputs = inputs_of(name)
    cotangents = torch.randn_like(cases.logits_of(case.model, inputs))
    sublayers = in_order(case, inputs)
    start = int(share * len(sublayers))
    expected, order = observed(case, name, sublayers, inputs, cotangents, start=start)
    forwards = [vars(module).get("forward") for module in case.model.modules()]
    with mapped.in_files():
        seen, again = observed(case, name, sublayers, inputs, cotangents, start=start)
    assert again == order
    for key, wanted in expected.items():
        for part, value in vars(wanted).items():
            found = getattr(seen[key], part)
            assert found is value is None or torch.equal(found, value), f"{key}: {part}"
    assert [vars(module).get("forward") for module in case.model.modules()] == forwards


def test_gradients_are_those_of_autograd(case: Case, name: str) -> None:
    inputs = inputs_of(name)
    cotangents = torch.randn_like(cases.logits_of(case.model, inputs))
    sublayers = in_order(case, inputs)
    seen, order = observed(case, name, sublayers, inputs, cotangents)
    expected = by_autograd(case, inputs, cotangents)
    forward = [s.name for s in sublayers if not s.units]
    backward = [s.name for s in reversed(sublayers) if s.units]
    assert order[: len(forward)] == forward
    if name == "towers":
        # two branches of one graph: whichever autograd takes first
        assert sorted(order[len(forward) :]) == sorted(backward)
    else:
        assert order[len(forward) :] == backward
    for s in sublayers:
        own = seen[s.name]
        if s.units == 0:
            assert own.x_gradient is None
            assert own.y_gradient is None
            continue
        for found, oracle in zip((own.x, own.y, own.x_gradient, own.y_gradient), expected[s.name], strict=True):
            assert found is not None
            assert torch.allclose(found, oracle, atol=1e-5)
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_the_graph_may_start_late(case: Case, name: str) -> None:
    inputs = inputs_of(name)
    cotangents = torch.randn_like(cases.logits_of(case.model, inputs))
    sublayers = in_order(case, inputs)
    start = len(sublayers) - 2
    seen, _ = observed(case, name, sublayers, inputs, cotangents, start=start)
    expected = by_autograd(case, inputs, cotangents)
    assert len(seen) == len(sublayers)
    for place, s in enumerate(sublayers):
        own = seen[s.name]
        assert (own.x_gradient is None) == (place < start or s.units == 0)
        if own.x_gradient is not None and own.y_gradient is not None:
            assert torch.allclose(own.x_gradient, expected[s.name][2], atol=1e-5)
            assert torch.allclose(own.y_gradient, expected[s.name][3], atol=1e-5)


def expected_bases(case: Case, sublayers: list[Sublayer], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each branch of `add` and `parallel` joins: what the next module reads less the branches that joined it."""
    joined = {s.name: case.joined_at(s) for s in sublayers if case.joined_at(s)}
    with torch.no_grad(), listening(case.model, joined) as after, listening(case.model, projections(case)) as ys:
        case.model(**inputs)
    found: dict[str, Tensor] = {}
    for key, ((read, _),) in after.items():
        layer = next(s.prefix for s in sublayers if s.name == key)
        for s in reversed([s for s in sublayers if s.prefix == layer and (s.name == key or s.spec.join == "parallel")]):
            read = read - ys[s.name][0][1]
            found[s.name] = read
    return found


def test_base_and_branch_are_what_the_next_module_reads(case: Case, name: str) -> None:
    inputs = inputs_of(name)
    sublayers = in_order(case, inputs)
    seen, _ = observed(case, name, sublayers, inputs, cases.logits_of(case.model, inputs))
    bases = expected_bases(case, sublayers, inputs)
    assert set(bases) == {s.name for s in sublayers if s.spec.join != "normed"}
    for s in sublayers:
        base = seen[s.name].base
        if s.spec.join == "normed":
            assert base is None
        else:
            assert base is not None
            assert torch.allclose(base, bases[s.name], atol=1e-5)


def test_what_can_be_aimed_is_called_once(case: Case, name: str) -> None:
    inputs = inputs_of(name)
    sublayers = in_order(case, inputs)
    producers = {p.path: p.path for s in sublayers if s.units for p in s.parts.producers}
    with torch.no_grad(), listening(case.model, producers) as calls:
        case.model(**inputs)
    seen, _ = observed(case, name, sublayers, inputs, cases.logits_of(case.model, inputs))
    for s in sublayers:
        sources = [spec.source for spec in s.spec.producers]
        if s.units == 0 or "several" in sources:
            assert s.aimed == ()
            assert seen[s.name].source is None
            assert s.units == 0 or max(len(calls[p.path]) for p in s.parts.producers) > 1
            continue
        assert [p.path for p in s.aimed] == [
            p.path for p, source in zip(s.parts.producers, sources, strict=True) if source == "stream"
        ]
        for producer in s.aimed:
            ((source, _),) = calls[producer.path]
            assert torch.equal(source, seen[s.name].source)


def test_lockstep_stops_everywhere_once_and_changes_nothing(case: Case, name: str) -> None:
    batches = [batch_of(inputs_of(name, seed=i, rows=i + 2, length=7 - i)) for i in range(3)]
    sublayers = in_order(case, batches[0].inputs)
    expected = [cases.logits_of(case.model, batch.inputs) for batch in batches]
    leaves = [m for m in case.model.modules() if not list(m.children())]
    counted: Counter[nn.Module] = Counter()
    handles = [m.register_forward_hook(lambda m, a, y: counted.update([m])) for m in leaves]
    cases.logits_of(case.model, batches[0].inputs)
    once = dict(counted)
    counted.clear()
    arrivals: list[tuple[str, Arrival]] = []
    with lockstep(case.model, sublayers, batches) as run:
        for s in sublayers:
            arrivals += [(s.name, arrival) for arrival in run.arrivals(s)]
        outputs = run.finish()
    for handle in handles:
        handle.remove()
    assert [(key, a.batch) for key, a in arrivals] == [(s.name, i) for s in sublayers for i in range(3)]
    assert all(torch.equal(o.logits, e) for o, e in zip(outputs, expected, strict=True))
    assert counted == {module: 3 * count for module, count in once.items()}
    check_arrivals(case, sublayers, batches, arrivals)


def check_arrivals(
    case: Case, sublayers: list[Sublayer], batches: list[Batch], arrivals: list[tuple[str, Arrival]]
) -> None:
    """Every batch arrives with the x and the base of a plain forward."""
    for index, batch in enumerate(batches):
        with torch.no_grad(), listening(case.model, projections(case)) as calls:
            case.model(**batch.inputs)
        bases = expected_bases(case, sublayers, batch.inputs)
        for key, arrival in arrivals:
            if arrival.batch != index:
                continue
            assert torch.equal(arrival.x, calls[key][0][0])
            assert (arrival.base is None) == (key not in bases)
            assert arrival.base is None or torch.allclose(arrival.base, bases[key], atol=1e-5)


def test_lockstep_also_stops_at_what_can_be_aimed(case: Case, name: str) -> None:
    batches = [batch_of(inputs_of(name, seed=i, rows=i + 2)) for i in range(2)]
    sublayers = in_order(case, batches[0].inputs)
    producers = {s.name: s.aimed[0].path for s in sublayers if s.aimed}
    sources: list[dict[str, Tensor]] = []
    for batch in batches:
        with torch.no_grad(), listening(case.model, producers) as calls:
            case.model(**batch.inputs)
        sources.append({key: x for key, ((x, _),) in calls.items()})
    with lockstep(case.model, sublayers, batches, producers=True) as run:
        for s in sublayers:
            if s.aimed:
                entered = list(run.entries(s))
                assert [index for index, _ in entered] == [0, 1]
                assert all(torch.equal(x, sources[index][s.name]) for index, x in entered)
            run.skip(s)
        run.finish()


def test_weights_changed_where_everyone_waits_take_effect(case: Case, name: str) -> None:
    batches = [batch_of(inputs_of(name, seed=i)) for i in range(2)]
    sublayers = in_order(case, batches[0].inputs)
    changed = [s for s in sublayers if s.units][:2]
    with lockstep(case.model, sublayers, batches) as run, torch.no_grad():
        for s in sublayers:
            bases = [arrival.base for arrival in run.arrivals(s)]
            if s in changed:
                s.weight(case.model).mul_(0.5)
        outputs = run.finish()
    assert all(
        torch.equal(o.logits, cases.logits_of(case.model, b.inputs)) for o, b in zip(outputs, batches, strict=True)
    )
    # the base of the last branch, too, is that of the changed model
    expected = [expected_bases(case, sublayers, batch.inputs).get(sublayers[-1].name) for batch in batches]
    for base, oracle in zip(bases, expected, strict=True):
        assert (base is None) == (oracle is None)
        assert base is None or torch.allclose(base, oracle, atol=1e-5)
