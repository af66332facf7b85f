"""Tries a family on a whole model before anything is touched: what cannot be proved is left whole, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.data.batches import rows_at
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.host.mapped import copied
from faster_pruner.model.detection.following import all_same
from faster_pruner.model.detection.watching import Inputs, hooked, in_the_open, rows_of, twin
from faster_pruner.model.gradients import Bases, gradients
from faster_pruner.model.network import cut_down
from faster_pruner.model.passes import masked_by, tensors_in
from faster_pruner.model.precision import copy_of
from faster_pruner.model.spec import Family, Sublayer, resolve

Keeps = Mapping[str, Tensor]
# A relative difference of what is in its place: linear attention rounds by 1e-5.
_SAME_PLACE = 1e-3
_DIFFERS = "with fewer of its units the model returns other values than with those units masked"


def prove(model: nn.Module, family: Family, inputs: Inputs) -> list[str]:
    """Why a family cannot be trusted, one line for each sublayer; empty when it is proved.

    Args:
        model: in eval mode; nothing of it is changed.
        family: of it.
        inputs: a small batch.
    """
    try:
        sublayers = resolve(model, family)
    except UnsupportedModelError as error:
        return [str(error)]
    plain = values(model, inputs)
    if not all(bool(torch.isfinite(v).all()) for v in plain):
        return ["the model's own values are not finite"]
    if not _alike(values(model, inputs), plain):
        return ["two equal forwards differ: the model draws random numbers"]
    seen = _run(model, sublayers, inputs)
    wrong = [
        f"{s.name}: runs {seen.calls(s.name)} times in one forward, its layer {s.stack.calls}"
        for s in sublayers
        if seen.calls(s.name) != s.stack.calls
    ]
    sublayers = [s for s in sublayers if seen.calls(s.name) == s.stack.calls]
    full = {s.name: torch.arange(s.units) for s in sublayers}
    if not _alike(values(model, inputs, sublayers, full), plain):
        return [*wrong, "full masks change bits"]
    wrong += _rows_first(model, sublayers, inputs, seen.given)
    wrong += seen.interleaved(sublayers)
    wrong += _bases(model, sublayers, inputs)
    in_open = in_the_open(model)
    for keeps in (uneven(sublayers), least(sublayers), every_other(sublayers)):
        wrong += _differs(model, sublayers, inputs, keeps)
        if in_open is not model and not wrong:
            wrong += _differs(in_open, sublayers, inputs, keeps)
    return list(dict.fromkeys(wrong)) or _backward(model, sublayers, inputs)


def _alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether values are equal, bit for bit."""
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def _backward(model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs) -> list[str]:
    """Why the gradients that every method needs cannot be taken: a model's code may be made for forwards only."""
    seen: set[str] = set()
    try:
        with gradients(model, sublayers, lambda s, observed: seen.add(s.name)):
            ends = [tensor for tensor in tensors_in(model(**inputs)) if tensor.requires_grad]
            if ends:
                torch.stack([tensor.sum() for tensor in ends]).sum().backward()
    except RuntimeError:  # what autograd says is for the authors of that code
        return ["its gradients cannot be followed: its code is made for forwards only"]
    return []


def proved(model: nn.Module, family: Family, inputs: Inputs) -> tuple[Family, dict[str, str]]:
    """What of a family is proved, and by name of sublayer why the rest is left whole.

    Raises:
        UnsupportedModelError: nothing is.
    """
    reasons: dict[str, str] = {}
    for _ in range(4):
        wrong = prove(model, family, inputs)
        if not wrong:
            return family, reasons
        named = {line.split(": ")[0]: line.split(": ", 1)[-1] for line in wrong}
        smaller = without(model, family, set(named))
        if smaller == family:
            raise UnsupportedModelError("; ".join(wrong))
        reasons |= named
        family = smaller
        if not family.stacks:
            break
    raise UnsupportedModelError("nothing can be proved: " + "; ".join(f"{k}: {v}" for k, v in reasons.items())[:300])


def without(model: nn.Module, family: Family, names: set[str]) -> Family:
    """A family without some sublayers."""
    stacks = []
    for stack in family.stacks:
        one = Family(stacks=(stack,))
        specs = []
        for spec in stack.sublayers:
            own = list(resolve(model, replace(one, stacks=(replace(stack, sublayers=(spec,)),))))
            kept = tuple(s.layer for s in own if s.name not in names)
            if len(kept) == len(own):
                specs.append(spec)
            elif kept:
                specs.append(replace(spec, layers=kept))
        if specs:
            stacks.append(replace(stack, sublayers=tuple(specs)))
    return Family(stacks=tuple(stacks))


def uneven(sublayers: Sequence[Sublayer]) -> dict[str, Tensor]:
    """A different number of units in every sublayer, not the first ones."""
    found: dict[str, Tensor] = {}
    for place, s in enumerate(sublayers):
        # of all groups of a sublayer the same ones
        inside = torch.arange(s.units // s.parts.groups)
        kept = (inside + place) % (2 + place // 2 % 2) != 0
        found[s.name] = kept.repeat(s.parts.groups).nonzero().flatten()
    return found


def least(sublayers: Sequence[Sublayer]) -> dict[str, Tensor]:
    """As little as there may be."""
    return {s.name: s.parts.first(s.spec.least) for s in sublayers}


def every_other(sublayers: Sequence[Sublayer]) -> dict[str, Tensor]:
    """As little as there may be of every second layer, all of the others: emptied branches may hand something on."""
    return {s.name: s.parts.first(s.spec.least if s.layer % 2 else s.units) for s in sublayers}


@torch.no_grad()
def values(
    model: nn.Module, inputs: Inputs, sublayers: Sequence[Sublayer] = (), keeps: Keeps | None = None
) -> list[Tensor]:
    """All that the model returns, with the units that are not kept masked."""
    with hooked(ExitStack()) as stack:
        for s in sublayers if keeps is not None else ():
            assert keeps is not None
            mask = torch.zeros(s.units).index_fill(0, keeps[s.name], 1.0).repeat_interleave(s.unit_size)
            stack.callback(s.projection(model).register_forward_pre_hook(masked_by(mask)).remove)
        return [tensor.clone() for tensor in tensors_in(model(**inputs))]


def _differs(model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs, keeps: Keeps) -> list[str]:
    """Sublayers that differ when they are cut from when they are masked: all together first, then one by one."""
    reason = _cut_and_masked(model, sublayers, inputs, keeps)
    if not reason:
        return []
    alone = {s.name: _cut_and_masked(model, [s], inputs, keeps) for s in sublayers}
    alone = {
        name: why
        for name, why in alone.items()
        if why and not _rounding(model, sublayers, inputs, keeps, name=name, reason=why)
    }
    if not alone and not _rounding(model, sublayers, inputs, keeps, name="", reason=reason):
        return [f"all together: {reason}"]
    return [f"{name}: {why}" for name, why in alone.items()]


def _rounding(
    model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs, keeps: Keeps, *, name: str, reason: str
) -> bool:
    """Whether a difference is one of rounding, which adds up over layers: in double precision there is next to none."""
    if not reason.startswith(_DIFFERS):
        return False
    # also what no file holds
    exact = copy_of(model, dtype=torch.float64).double()
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    return not _cut_and_masked(exact, [s for s in sublayers if name in ("", s.name)], wide, keeps)


def _cut_and_masked(model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs, keeps: Keeps) -> str:
    """How cutting differs from masking; empty where it does not."""
    own = twin(model)
    outside = _outside(own, sublayers)
    try:
        for s in sublayers:
            cut_down(own, s.parts, keeps[s.name])
        found = values(own, inputs)
    except Exception:  # whatever a model's code does with sizes that it was not written for
        return "the model's own code cannot run with fewer units of it"
    expected = values(model, inputs, sublayers, keeps)
    if not all_same(found, expected):
        return f"{_DIFFERS} ({_largest(found, expected)})"
    after = dict(own.named_parameters())
    if any(after.get(name) is not parameter for name, parameter in outside.items()):
        return "parameters of other modules have changed"
    return ""


def _rows_first(
    model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs, given: Mapping[str, Tensor]
) -> list[str]:
    """Sublayers to which the tokens of a batch do not come row after row (`passes.by_row` relies on that).

    With the rows of the batch turned round, so are those of what they are `given`.
    """
    rows, wrong = rows_of(inputs), []
    turned = _run(model, sublayers, rows_at(inputs, torch.arange(rows - 1, -1, -1), rows)).given
    for s in sublayers:
        a, b = given[s.name], turned[s.name]
        fits = a.shape == b.shape and a.numel() % (rows * s.columns) == 0
        # a wrong order differs by as much as the values do, the same one by rounding
        if not fits or not _near(a.reshape(rows, -1, s.columns), b.reshape(rows, -1, s.columns).flip(0)):
            wrong.append(f"{s.name}: its tokens do not come row after row")
    return wrong


def _near(found: Tensor, expected: Tensor) -> bool:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return not expected.numel() or float((found - expected).abs().max()) <= _SAME_PLACE * scale


@dataclass
class _Run:
    """One forward, as passes over the model go through it.

    Attributes:
        stops: (name of a sublayer, whether it begins there) in order: at its first producer, where that can be aimed,
            and at its projection.
        given: what each projection is given in its first call.
    """

    stops: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    given: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def calls(self, name: str) -> int:
        """How often a projection runs."""
        return self.stops.count((name, False))

    def interleaved(self, sublayers: Sequence[Sublayer]) -> list[str]:
        """Sublayers between whose producers and projection another one begins or ends: passes go on to the next."""
        names = {s.name for s in sublayers}
        stops = [stop for stop in self.stops if stop[0] in names]
        return [
            f"{name}: its producers run before another branch has ended"
            for place, (name, begins) in enumerate(stops)
            if begins and stops[place + 1 : place + 2] != [(name, False)]
        ]


def _run(model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs) -> _Run:
    """Run the model once and watch its sublayers."""
    seen = _Run()
    with hooked(ExitStack()) as stack:
        for s in sublayers:

            def begins(module: nn.Module, args: Any, name: str = s.name) -> None:
                seen.stops.append((name, True))

            def ends(module: nn.Module, args: tuple[Any, ...], name: str = s.name) -> None:
                seen.stops.append((name, False))
                seen.given.setdefault(name, copied(args[0]))

            if s.aimed:
                stack.callback(model.get_submodule(s.aimed[0].path).register_forward_pre_hook(begins).remove)
            stack.callback(s.projection(model).register_forward_pre_hook(ends).remove)
        model(**inputs)
    return seen


def _largest(found: list[Tensor], expected: list[Tensor]) -> str:
    """The largest difference, in words."""
    if [f.shape for f in found] != [e.shape for e in expected]:
        return "other shapes"
    return f"by {max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)):.0e}"


def _outside(model: nn.Module, sublayers: Sequence[Sublayer]) -> dict[str, nn.Parameter]:
    """Parameters that belong to no sublayer."""
    inside: set[str] = set()
    for s in sublayers:
        inside |= {s.parts.projection, *(p.path for p in s.parts.producers), *(f.module for f in s.parts.followers)}
        inside |= {s.parts.branch} - {""}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not any(name.startswith(path + ".") for path in inside)
    }


def _bases(model: nn.Module, sublayers: Sequence[Sublayer], inputs: Inputs) -> list[str]:
    """Sublayers whose base is not what the project's own passes take for it."""
    bases = Bases()
    wrong: list[str] = []
    ends: list[tuple[str, Tensor]] = []
    with hooked(ExitStack()) as stack:
        seen: list[Tensor] = []

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            seen.extend(copied(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor))

        def output(module: nn.Module, args: Any, value: Any) -> None:
            seen.extend(copied(tensor) for tensor in tensors_in(value))

        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(output).remove)
        Bases.attach(stack, model, sublayers, lambda: bases)
        for s in sublayers:
            reached: dict[str, Tensor | None] = {}
            stack.callback(s.projection(model).register_forward_pre_hook(_start(s, bases, reached, wrong)).remove)
            stack.callback(s.projection(model).register_forward_hook(_end(s, reached, ends)).remove)
        model(**inputs)
    parallel = {s.name: s for s in sublayers if s.spec.join == "parallel"}
    for name, total in ends:
        if name in parallel and not _is_last(name, parallel, [n for n, _ in ends]):
            continue
        if not any(_read(t, total) for t in seen):
            wrong.append(f"{name}: where its output is added cannot be seen")
    return wrong


def _read(t: Tensor, total: Tensor) -> bool:
    """Whether a tensor that some module reads or returns is the stream after a branch has joined."""
    if t.numel() != total.numel() or t.shape[-1:] != total.shape[-1:]:
        return False
    scale = max(1.0, float(total.abs().max()))
    return float((t.reshape(total.shape) - total).abs().max()) <= 1e-5 * scale


def _is_last(name: str, parallel: Mapping[str, Sublayer], order: Sequence[str]) -> bool:
    """Whether a branch is the last to run of those of its layer."""
    own = [n for n in order if n in parallel and parallel[n].prefix == parallel[name].prefix]
    return own[-1] == name


def _start(s: Sublayer, bases: Bases, reached: dict[str, Tensor | None], wrong: list[str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        try:
            reached[s.name] = bases.of(s)
        except KeyError:
            wrong.append(f"{s.name}: the stream is not read before the branch")

    return hook


def _end(s: Sublayer, reached: dict[str, Tensor | None], ends: list[tuple[str, Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, y: Tensor) -> None:
        base = reached.pop(s.name, None)
        if base is not None:
            ends.append((s.name, base + y))

    return hook
