"""What of a checkpoint can be pruned, and what not, and why; nothing is pruned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import open_model
from faster_pruner.checkpoint.reranker import scoring_of
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.checkpoint.sizes import is_pruned
from faster_pruner.costs.cost import Macs, Parameters, total
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.host import places
from faster_pruner.host.files import beside
from faster_pruner.host.marks import MASKS_FILE
from faster_pruner.host.places import public_name
from faster_pruner.inspected import Inspection, StackFound, SublayerFound, ranges
from faster_pruner.model.shrink import Producer
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.registry import kind_of
from faster_pruner.results import strict_json

# The first number in a path is that of the layer.
_NUMBERED = re.compile(r"((?:[^.]*[^.0-9][^.]*\.)*)(\d+)(\..*)?")
# Tokens per row that MACs are given for.
_LENGTH = 128
_JOINS = {
    "add": "added to the stream",
    "normed": "normalised or scaled, then added",
    "parallel": "added together with the other branches of its layer",
}
_SOURCES = {"stream": "", "memory": ", reads another stack", "several": ", is given several things"}


def inspect(model: str | Path, *, run: Run | None = None) -> Inspection:
    """Say what of a checkpoint can be pruned. A model that no row of the table describes is run, and what is found is
    proved on a batch, as before every pruning.

    Args:
        model: local folder or hub id of a dense or pruned checkpoint.
        run: device and listener.

    Raises:
        CheckpointError: it cannot be opened.
        UnsupportedModelError: nothing of it can be pruned.
    """
    place = as_place(model)
    run = run or Run()
    device = run.on()
    clock = run.clock(device)
    with clock.stage("load"):
        opened = open_model(place, device=device)
    with clock.stage("look at the model"):
        found = opened.describe()
    return Inspection(
        model=public_name(place),
        model_class=type(opened.model).__name__,
        task=_task(place, opened.model),
        origin=found.origin,
        pruned=is_pruned(opened.model.config),
        parameters=sum(parameter.numel() for parameter in opened.model.parameters()),
        prunable=round(total(Parameters(), found.sublayers)),
        length=_LENGTH,
        stacks=_stacks(found.sublayers, _units_before(place, found.sublayers)),
        left=by_reason(found.left),
    )


def check_json(file: Path) -> None:
    """Before any work: a file may take what is found. Raises OutputError."""
    places.check_json(file, {each.name for each in fields(Inspection)})


def write_json(file: Path, found: Inspection) -> None:
    """What was found, in a file. Raises OutputError."""
    with beside(file) as staging:
        staging.write_text(strict_json(asdict(found)), encoding="utf-8")


def _task(place: str, model: Any) -> str:
    """The hub's name of what a model is for; empty where no objective is known."""
    try:
        return kind_of(model, scoring_of(place, model.config)).name
    except UnsupportedModelError:
        return ""


def _units_before(place: str, sublayers: Sequence[Sublayer]) -> dict[str, int]:
    """By name of sublayer the units of the dense model, as the masks beside a local checkpoint say; empty without."""
    try:
        found: Any = json.loads((Path(place) / MASKS_FILE).read_text(encoding="utf-8"))
        kept = {name: (str(mask).count("1"), len(mask)) for name, mask in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    if any(s.name in kept and kept[s.name][0] != s.units for s in sublayers):
        # they are of another model
        return {}
    return {s.name: kept.get(s.name, (0, s.units))[1] for s in sublayers}


def _stacks(sublayers: Sequence[Sublayer], before: Mapping[str, int]) -> list[StackFound]:
    """Stacks in their order."""
    found: list[StackFound] = []
    for stack in dict.fromkeys(s.stack for s in sublayers):
        own = [s for s in sublayers if s.stack == stack]
        prefix = own[0].prefix.removesuffix(".").rpartition(".")[0]
        # in the order in which the layer with most of them runs them
        fullest = max(dict.fromkeys(s.layer for s in own), key=[s.layer for s in own].count)
        kinds = dict.fromkeys(s.spec.kind for s in (*(s for s in own if s.layer == fullest), *own))
        found.append(
            StackFound(
                name=stack.name,
                path=prefix,
                layers=1 + max(s.layer for s in own),
                calls=stack.calls,
                sublayers=[_kind([s for s in own if s.spec.kind == kind], before) for kind in kinds],
            )
        )
    return found


def _kind(group: Sequence[Sublayer], before: Mapping[str, int]) -> SublayerFound:
    """Sublayers of one kind."""
    first = group[0]
    spec = first.spec
    macs = Macs({first.stack.name: float(_LENGTH)})
    return SublayerFound(
        kind=spec.kind,
        unit=spec.unit,
        layers=[s.layer for s in group],
        units=[s.units for s in group],
        dense=[before[s.name] for s in group] if before else [],
        columns=first.unit_size,
        projection=spec.projection,
        producers={
            each.module: _rows(part, spec.unit) + _SOURCES[each.source]
            for each, part in zip(spec.producers, first.parts.producers, strict=True)
        },
        join=_JOINS[spec.join],
        follows=[f"{each.module}.{each.name}".strip(".") for each in spec.followers],
        least=max(s.spec.least for s in group),
        stock=spec.stock,
        macs=total(macs, group),
    )


def _rows(producer: Producer, unit: str) -> str:
    """What the rows of a producer are, in words."""
    own = [block.features for block in producer.blocks if not block.fixed]
    shared = sum(block.features for block in producer.blocks if block.fixed)
    alike = len(set(own)) == 1 and len(own) > 1
    per = f"{len(own)} x {own[0]}" if alike else " + ".join(map(str, own))
    text = f"{per} row{'' if per == '1' else 's'} per {unit}" if own else ""
    return " and ".join(filter(None, [text, f"{shared} shared rows" if shared else ""]))


def by_reason(left: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> paths, those that differ in the number of their layer only as one: ``layers.0-5.router``."""
    found: dict[str, dict[tuple[str, str], list[int]]] = {}
    for path, reason in left.items():
        match = _NUMBERED.fullmatch(path)
        before, number, after = match.groups("") if match else (path, "", "")
        found.setdefault(reason, {}).setdefault((before, after), []).extend([int(number)] if number else [])
    return {
        reason: [before + ranges(numbers) + after for (before, after), numbers in paths.items()]
        for reason, paths in found.items()
    }
