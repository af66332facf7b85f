"""A journal in a working folder: statistics and scores in sealed folders, the recovery in a file per sublayer.

    statistics/                 a safetensors file per sublayer
    scores/                     what the dense model predicts
    cut-<limits>/               how strong these limits are
    cut-<limits>/<round>/       the selection, and a file per sublayer that is done

File names come from the family and the model's depth, never from what a file says. What is damaged is done again, and
whatever followed from it; a line says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faster_pruner.costs.budget import Bound
from faster_pruner.host.mapped import copied
from faster_pruner.host.working import Damaged, WorkingFolder
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.journal import Done, Parameters
from faster_pruner.method.kept import as_tensors, from_tensors, write_tensors
from faster_pruner.method.scores import FILE, Score, load_scores, save_scores
from faster_pruner.method.selecting import Sizes
from faster_pruner.method.statistics import Statistics
from faster_pruner.model.spec import Sublayer
from faster_pruner.results import SublayerResult
from faster_pruner.selection.search import Selection

STATISTICS, _SCORES, _CUT = "statistics", "scores", "cut-"
_ENDING, _SHARE, _SELECTION, _STATE = ".safetensors", "share.safetensors", "selection.safetensors", "state"
# Parts of the file of a sublayer.
_AIMED, _FITTED = "aimed:", "fitted:"
# What a file that is not what was written raises.
_WRONG = (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError)


@dataclass(frozen=True)
class JournalOnDisk:
    """What a run has done so far, in a folder.

    Attributes:
        folder: claimed by this run.
        taken_over: see `Journal`.
        found: what could not be read.
    """

    folder: WorkingFolder
    taken_over: list[str] = field(default_factory=list[str])
    found: list[str] = field(default_factory=list[str])

    @property
    def problems(self) -> list[str]:
        """See `Journal`."""
        if not self.folder.failed:
            return self.found
        return [*self.found, f"after an interruption this run could not have gone on: {self.folder.failed}"]

    def statistics(self, sublayers: Sequence[Sublayer], data: CalibrationSet) -> Statistics | None:
        """Those that an earlier run took; where they are damaged everything is begun anew."""
        if not self.folder.has(STATISTICS):
            return None
        count, device, shelf = len(data.own), data.batches[0].rows.device, data.setting.shelf
        try:
            rows = int(self.folder.unseal(STATISTICS)["rows"])
            place = self.folder.path / STATISTICS
            # tensors of their own: those in a mapped file lie differently, and products of them round differently
            stored = ((s.name, _loaded(place / f"{s.name}{_ENDING}")) for s in sublayers)
            found = Statistics(
                sublayers={name: from_tensors(tensors, count, shelf, device) for name, tensors in stored}, rows=rows
            )
        except (Damaged, *_WRONG) as error:
            self.folder.remove(STATISTICS, *(name for name in self.folder.inside() if name.startswith(_CUT)))
            self.damaged("statistics", error)
            return None
        self.taken_over.append("statistics")
        return found

    def taken(self, statistics: Statistics) -> None:
        """Keep them."""

        def write(place: Path) -> dict[str, Any]:
            for name, own in statistics.sublayers.items():
                write_tensors(place / f"{name}{_ENDING}", as_tensors(own))
            return {"rows": statistics.rows}

        self.folder.keep_sealed(STATISTICS, write)

    def scores(self) -> dict[str, Score]:
        """What the dense model predicted, by split; empty where it was not asked."""
        if not self.folder.has(_SCORES):
            return {}
        try:
            keys: dict[str, str] = self.folder.unseal(_SCORES)["keys"]
            return load_scores(self.folder.path / _SCORES / FILE, keys)
        except (Damaged, *_WRONG) as error:
            self.folder.remove(_SCORES)
            self.damaged("the dense model's predictions", error)
            return {}

    def keep_scores(self, scores: Mapping[str, Score]) -> None:
        """Keep them."""
        self.folder.keep_sealed(_SCORES, lambda place: {"keys": save_scores(place / FILE, scores)})

    def cut(self, sublayers: Sequence[Sublayer], bounds: Sequence[Bound], sizes: Sizes) -> CutOnDisk:
        """See `Journal`."""
        return CutOnDisk(self, f"{_CUT}{_digest_of_limits(sublayers, bounds, sizes)}")

    def damaged(self, what: str, error: Exception) -> None:
        """Remember that something is done again."""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self.found.append(f"what an interrupted run had kept is damaged, and was done again: {what} ({reason})")


@dataclass(frozen=True)
class CutOnDisk:
    """A cut to some limits, in a folder of its own.

    Attributes:
        journal: whose cut it is.
        name: of the folder.
    """

    journal: JournalOnDisk
    name: str

    def share(self) -> float | None:
        """See `CutJournal`."""
        file = self.journal.folder.path / self.name / _SHARE
        if not file.exists():
            return None
        try:
            return float(_unsealed(file)[1]["share"])
        except _WRONG as error:
            self.journal.damaged("how strong the budget is", error)
            return None

    def shared(self, share: float) -> None:
        """Keep it."""
        self.journal.folder.keep(f"{self.name}/{_SHARE}", lambda file: _seal(file, {}, {"share": share}))

    def round(self, place: int) -> RoundOnDisk:
        """See `CutJournal`."""
        return RoundOnDisk(self.journal, self.name, place)


@dataclass
class RoundOnDisk:
    """One round of a cut.

    Attributes:
        journal: whose round it is.
        cut: name of the folder of the cut.
        place: of the round.
        now: parameters of the producers of the sublayer at hand, after their alignment.
        done: what an earlier run did; None before anybody has asked.
    """

    journal: JournalOnDisk
    cut: str
    place: int
    now: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    done: list[Done] | None = None

    @property
    def _name(self) -> str:
        return f"{self.cut}/{self.place}"

    def _file(self, name: str) -> Path:
        return self.journal.folder.path / self._name / name

    def selection(self) -> Selection | None:
        """What an earlier run chose; without it nothing else of the round, or of a later one, is of use."""
        file = self._file(_SELECTION)
        if file.exists():
            try:
                tensors, _ = _unsealed(file)
            except _WRONG as error:
                self.journal.damaged("a selection", error)
            else:
                return tensors
        self._forget(from_round=self.place)
        return None

    def chosen(self, selection: Selection) -> None:
        """Keep it."""
        self.journal.folder.keep(f"{self._name}/{_SELECTION}", lambda file: _seal(file, selection, {}))

    def earlier(self, sublayers: Sequence[Sublayer]) -> list[Done]:
        """What an earlier run did; what lies behind a gap is of no use any more."""
        if self.done is not None:
            return self.done
        self.done = list(self._read(sublayers))
        stopped = bool(self.done) and self.done[-1].result.status == "stopped"
        if len(self.done) < len(sublayers) and not stopped:
            names = {f"{s.name}{_ENDING}" for s in sublayers[len(self.done) :]}
            there = names & set(self.journal.folder.inside(self._name))
            self.journal.folder.remove(*(f"{self._name}/{name}" for name in there))
            self._forget(from_round=self.place + 1)
        if self.done:
            where = f"round {self.place + 1}, " if self.place else ""
            self.journal.taken_over.append(f"recovery, {where}{len(self.done)} of {len(sublayers)} sublayers")
        return self.done

    def aimed(self, model: nn.Module, sublayer: Sublayer) -> None:
        """What the producers are now is kept with the rest."""
        self.now = _parameters(model, [producer.path for producer in sublayer.aimed])

    def fitted(self, model: nn.Module, sublayer: Sublayer, result: SublayerResult, *, renewed: bool) -> None:
        """Keep what was fitted: the projection, and the producers where the forwards went on with those."""
        paths = [producer.path for producer in sublayer.parts.producers] if renewed else []
        fitted = _parameters(model, [*paths, sublayer.parts.projection])
        parts = ((_AIMED, self.now), (_FITTED, fitted))
        tensors = {f"{part}{name}": value for part, own in parts for name, value in own.items()}
        state = {"result": asdict(result), "renewed": renewed}
        name = f"{self._name}/{sublayer.name}{_ENDING}"
        self.journal.folder.keep(name, lambda file: _seal(file, tensors, state))
        self.now = {}

    def _read(self, sublayers: Sequence[Sublayer]) -> Iterator[Done]:
        """The first sublayers, as far as their files are there and as they were written."""
        for sublayer in sublayers:
            file = self._file(f"{sublayer.name}{_ENDING}")
            if not file.exists():
                return
            try:
                _, state = _unsealed(file)
                done = Done(SublayerResult(**state["result"]), bool(state["renewed"]), partial(_parameters_in, file))
            except _WRONG as error:
                self.journal.damaged(f"the recovery from {sublayer.name} on", error)
                return
            yield done
            if done.result.status == "stopped":
                return

    def _forget(self, *, from_round: int) -> None:
        """Rounds from one on are of no use any more."""
        rounds = [name for name in self.journal.folder.inside(self.cut) if name.isdecimal() and int(name) >= from_round]
        self.journal.folder.remove(*(f"{self.cut}/{name}" for name in rounds))


def _loaded(file: Path) -> dict[str, Tensor]:
    """Tensors of a file, in memory (or a file) of their own."""
    return {name: copied(tensor) for name, tensor in load_file(file).items()}


def _parameters(model: nn.Module, paths: Sequence[str]) -> dict[str, Tensor]:
    """A copy of the parameters of some modules themselves, by name."""
    found: dict[str, Tensor] = {}
    for path in paths:
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False):
            found[f"{path}.{name}"] = parameter.detach().to("cpu", copy=True).contiguous()
    return found


def _parameters_in(file: Path) -> Parameters:
    """What the file of a sublayer holds."""
    tensors, _ = _unsealed(file)
    aimed, fitted = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in (_AIMED, _FITTED)
    )
    return Parameters(aimed, fitted)


def _seal(file: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a state with a digest of both."""
    own = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    save_file(own, file, metadata={_STATE: text, "sha256": _digest(own, text)})


def _unsealed(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `_seal` wrote. Raises one of `_WRONG`."""
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
    if metadata["sha256"] != _digest(tensors, metadata[_STATE]):
        raise ValueError(f"{file.name} is not the file that was written")
    return tensors, json.loads(metadata[_STATE])


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of tensors by name, and of a text."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _digest_of_limits(sublayers: Sequence[Sublayer], bounds: Sequence[Bound], sizes: Sizes) -> str:
    """What tells the cuts of one run apart: the limits, what every size costs by them, and which sizes may be."""
    told = (sizes.uniform, sorted(sizes.multiple.items()), sorted(sizes.least.items()))
    found = hashlib.sha256(repr(told).encode())
    for bound in bounds:
        found.update(repr((bound.cost.name, bound.whole, bound.most)).encode())
        for s in sublayers:
            found.update(bound.cost.of(s, torch.arange(s.units + 1)).double().numpy().tobytes())
    return found.hexdigest()[:16]
