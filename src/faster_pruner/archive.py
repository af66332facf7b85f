"""Statistics of a calibration on disk: other budgets can be cut from them later, without the data.

A folder of safetensors files, one per sublayer, one for the batches, and `statistics.json`. File names come from the
family table and the model's depth, never from the JSON.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from faster_pruner.batches import Batch
from faster_pruner.calibrate import Statistics, SublayerStatistics
from faster_pruner.capture import PassSetting
from faster_pruner.checkpoint import Opened
from faster_pruner.errors import DataError, InputError
from faster_pruner.families import resolve
from faster_pruner.linalg import SecondMoment
from faster_pruner.options import CalibrationOptions, Method, SolverOptions
from faster_pruner.pipeline import Calibrated, CalibrationSet
from faster_pruner.precision import choose_precision
from faster_pruner.storage import HiddenStates, Shelf, default_limit

FORMAT = 2
_INDEX = "statistics.json"
_BATCHES = "batches.safetensors"


def weights_digest(opened: Opened) -> str:
    """SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(opened.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_statistics(
    folder: Path, calibrated: Calibrated, opened: Opened, *, about: dict[str, Any], method: Method
) -> None:
    """Write everything that a cut needs into an existing folder.

    Args:
        folder: empty.
        calibrated: what to keep.
        opened: the dense checkpoint.
        about: what else a later run wants to know (model, task, calibration options and hash); JSON.
        method: that the statistics were taken for.
    """
    data, statistics = calibrated.data, calibrated.statistics
    batches: dict[str, Tensor] = {"logits": statistics.logits}
    for i, batch in enumerate(data.batches):
        batches |= {f"{i}/inputs/{key}": value for key, value in batch.inputs.items()}
        batches[f"{i}/rows"] = batch.rows
        if batch.labels is not None:
            batches[f"{i}/labels"] = batch.labels
    _write(folder / _BATCHES, batches)
    for sublayer in calibrated.sublayers:
        own = statistics[sublayer.name]
        tensors = {f"read/{i}": mask for i, mask in enumerate(own.read)}
        tensors |= {f"targets/{i}": y for i, y in enumerate(own.targets)}
        tensors |= {f"producer_inputs/{i}": x for i, x in enumerate(own.producer_inputs)}
        for name, moment in (("inputs", own.inputs), ("output_gradients", own.output_gradients)):
            if moment is not None:
                tensors |= {f"{name}/gram": moment.gram, f"{name}/total": moment.total}
                tensors[f"{name}/count"] = torch.tensor(moment.count)
        tensors["rows"] = torch.tensor(own.rows)
        if own.mask_gradients is not None:
            tensors["mask_gradients"] = own.mask_gradients
        _write(folder / f"{sublayer.name}.safetensors", tensors)
    index = {
        "format": FORMAT,
        "weights": weights_digest(opened),
        "batches": len(data.batches),
        "differentiated": sum(batch.differentiated for batch in data.batches),
        "length": data.length,
        "seed": data.seed,
        "precision": data.setting.precision,
        "rows": statistics.rows,
        "method": asdict(method),
        "about": about,
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """`statistics.json`. Raises DataError."""
    try:
        index = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{str(folder)!r} has no readable {_INDEX}; make one with --keep-statistics") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{str(folder)!r}: {_INDEX} is not of format {FORMAT}; update faster-pruner")
    return index


def load_statistics(
    folder: Path, opened: Opened, *, memory_limit: int | None = None
) -> tuple[Calibrated, Method, CalibrationOptions]:
    """Read what `save_statistics` wrote.

    Args:
        folder: where it lies.
        opened: the dense checkpoint that the statistics were taken of.
        memory_limit: as in `CalibrationOptions`.

    Returns:
        The calibration, the method it was taken for, and its options.

    Raises:
        DataError: the folder is damaged, or belongs to other weights.
    """
    index = read_index(folder)
    if index.get("weights") != weights_digest(opened):
        raise DataError(f"the statistics in {str(folder)!r} were taken of other weights than the model's")
    device = next(opened.model.parameters()).device
    shelf = Shelf(default_limit(device) if memory_limit is None else memory_limit)
    try:
        method = _method(index["method"])
        options = CalibrationOptions(**{**index["about"]["calibration"], "precision": index["precision"]})
        count = int(index["batches"])
        stored = load_file(folder / _BATCHES, device=str(device))
        differentiated = int(index["differentiated"])
        batches = [replace(_batch(stored, i), differentiated=i < differentiated) for i in range(count)]
        sublayers = [s for s in resolve(opened.model, opened.family) if s.units > 0]
        found = {
            s.name: _sublayer(load_file(folder / f"{s.name}.safetensors", device=str(device)), count, shelf)
            for s in sublayers
        }
        setting = PassSetting(precision=choose_precision(options.precision, device), shelf=shelf)
        data = CalibrationSet(batches, float(index["length"]), int(index["seed"]), setting)
        statistics = Statistics(sublayers=found, logits=stored["logits"], rows=int(index["rows"]))
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError, InputError) as error:
        raise DataError(f"the statistics in {str(folder)!r} are damaged: {str(error).splitlines()[0]}") from error
    return Calibrated(opened.model, opened.family, sublayers, data, statistics), method, options


def _method(raw: dict[str, Any]) -> Method:
    """A method from its dictionary; every value is validated by its own class."""
    values: dict[str, Any] = {**raw, "solver": SolverOptions(**raw["solver"])}
    return Method(**values)


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file; tensors may share memory."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, file)


def _batch(stored: dict[str, Tensor], i: int) -> Batch:
    """The i-th batch."""
    prefix = f"{i}/inputs/"
    inputs = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    return Batch(inputs=inputs, rows=stored[f"{i}/rows"], labels=stored.get(f"{i}/labels"))


def _sublayer(stored: dict[str, Tensor], batches: int, shelf: Shelf) -> SublayerStatistics:
    """Statistics of one sublayer."""
    lists = {"targets": HiddenStates(shelf), "producer_inputs": HiddenStates(shelf)}
    for name, kept in lists.items():
        for i in range(batches):
            if f"{name}/{i}" in stored:
                kept.append(stored[f"{name}/{i}"].clone())
    return SublayerStatistics(
        mask_gradients=stored.get("mask_gradients"),
        inputs=_moment(stored, "inputs"),
        output_gradients=_moment(stored, "output_gradients"),
        rows=int(stored["rows"]),
        read=[stored[f"read/{i}"] for i in range(batches)],
        **lists,
    )


def _moment(stored: dict[str, Tensor], name: str) -> SecondMoment | None:
    """A second moment, None when it was not kept."""
    if f"{name}/gram" not in stored:
        return None
    return SecondMoment.of(stored[f"{name}/gram"], stored[f"{name}/total"], int(stored[f"{name}/count"]))
