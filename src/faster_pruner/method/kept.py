"""Statistics of a calibration on disk: other budgets can be cut from them later, without the data.

A folder of safetensors files, one per sublayer and one for the batches, and `statistics.json`, which holds their
SHA-256. File names come from the family and the model's depth, never from the JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.errors import DataError, InputError, OptionError
from faster_pruner.host.mapped import home
from faster_pruner.host.marks import KEPT_FILE
from faster_pruner.host.spill import HiddenStates, Shelf, default_limit, tensors_of
from faster_pruner.host.working import digest_of
from faster_pruner.linalg import SecondMoment
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.memory import shelf_for
from faster_pruner.method.scores import FILE as SCORES
from faster_pruner.method.scores import Score, load_scores, save_scores
from faster_pruner.method.statistics import Needs, Statistics, SublayerStatistics
from faster_pruner.model.passes import PassSetting, device_of
from faster_pruner.model.precision import choose_precision
from faster_pruner.model.reading import Reading, Rule
from faster_pruner.objectives.parts import predictions_of
from faster_pruner.options import CalibrationOptions, Method

FORMAT = 3
_BATCHES = "batches.safetensors"
# How the name of a second moment ends.
_GRAM = "/gram"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a later run wants to know beside the statistics.

    Attributes:
        model: where the dense checkpoint was.
        task: what it was calibrated for.
        calibration_hash: of the rows.
        truncated: rows that were cut because they were too long; None where nobody knows.
    """

    model: str
    task: str
    calibration_hash: str
    truncated: int | None = None


@dataclass(frozen=True)
class Kept:
    """What was read back.

    Attributes:
        calibrated: as it was when it was kept.
        method: that the statistics were taken for.
        options: of the calibration.
        scores: what the dense model predicts, by split; empty where that was not kept.
    """

    calibrated: Calibrated
    method: Method
    options: CalibrationOptions
    scores: dict[str, Score] = field(default_factory=dict[str, Score])


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def kept_bytes(rows: EncodedRows, subject: Subject, method: Method, precision: str) -> int:
    """About what `save_statistics` will write, for rows that have not been passed yet.

    Args:
        rows: the calibration set.
        subject: whose sublayers may all take part.
        method: that decides what is kept.
        precision: of the pass.
    """
    needs, wanted = Needs.of(method), subject.moment_tokens(method)
    tokens, item = sum(rows.lengths), 2 if precision == "bfloat16" else 4
    # sources are kept of what is differentiated
    differentiated = tokens if wanted is None else min(tokens, wanted)
    # the batches: token ids and mask, rows and labels
    total = 8 * (tokens * (len(rows.padding) + 1) + 2 * len(rows))
    for s in subject.sublayers:
        total += item * s.width * (tokens * needs.targets + differentiated * needs.sources)
        total += 4 * (s.columns**2 + s.width**2) * needs.moments + 4 * len(rows) * s.units * needs.mask_gradients
        total += tokens
    return total


def save_statistics(folder: Path, kept: Kept, about: About) -> None:
    """Write everything that a cut needs into an empty, existing folder.

    Args:
        folder: that takes the files.
        kept: what to keep.
        about: the rest.
    """
    calibrated = kept.calibrated
    data, reading = calibrated.data, calibrated.reading
    write_tensors(folder / _BATCHES, _batches_as_tensors(data.batches))
    for sublayer in calibrated.sublayers:
        tensors = as_tensors(calibrated.statistics[sublayer.name])
        write_tensors(folder / f"{sublayer.name}.safetensors", tensors)
    keys = save_scores(folder / SCORES, kept.scores) if kept.scores else {}
    files = {file.name: digest_of(file) for file in sorted(folder.iterdir())}
    index = {**_belongs(kept, about), "files": files, "ran": reading.order, "scores": keys}
    (folder / KEPT_FILE).write_text(json.dumps(index, indent=2) + "\n")


def are_kept(folder: Path, kept: Kept, about: About) -> bool:
    """Whether a folder holds statistics that were taken as these were. Raises DataError where it holds none."""
    found, wanted = _read_index(folder), json.loads(json.dumps(_belongs(kept, about)))
    return all(found.get(key) == value for key, value in wanted.items())


def _belongs(kept: Kept, about: About) -> dict[str, Any]:
    """What statistics are, and were taken of."""
    calibrated, method, options = kept.calibrated, kept.method, kept.options
    data, reading = calibrated.data, calibrated.reading
    return {
        "format": FORMAT,
        "weights": weights_digest(calibrated.model),
        "batches": len(data.batches),
        "differentiated": sum(batch.differentiated for batch in data.batches),
        "lengths": dict(data.lengths),
        "seed": data.seed,
        "precision": data.setting.precision,
        "rows": calibrated.statistics.rows,
        "rules": {name: rule.name for name, rule in reading.rules.items()},
        "order": [s.name for s in calibrated.sublayers],
        "tokens": reading.tokens,
        "whole": calibrated.whole,
        "method": method.to_dict(),
        "calibration": {**asdict(options), "memory_limit": None},
        "about": asdict(about),
    }


def read_about(folder: Path) -> About:
    """What `statistics.json` says beside the statistics. Raises DataError."""
    raw = _read_index(folder).get("about")
    try:
        about = About(**raw) if isinstance(raw, dict) else About(model="", task="", calibration_hash="")
    except TypeError as error:
        raise _damaged(folder, error) from error
    texts: list[object] = [about.model, about.task, about.calibration_hash]
    if not all(isinstance(value, str) for value in texts) or type(about.truncated) not in (int, type(None)):
        raise _damaged(folder, TypeError(f"about in {KEPT_FILE} is not what was written"))
    return about


def read_method(folder: Path) -> Method:
    """The method that statistics were taken for. Raises DataError."""
    try:
        return Method.from_dict(_read_index(folder)["method"])
    except (KeyError, OptionError) as error:
        raise _damaged(folder, error) from error


def load_statistics(folder: Path, subject: Subject, *, memory_limit: int | None = None) -> Kept:
    """Read what `save_statistics` wrote.

    Args:
        folder: where it lies.
        subject: the dense model that the statistics were taken of, and its objective.
        memory_limit: as in `CalibrationOptions`.

    Raises:
        DataError: the folder is damaged, of another format, or belongs to other weights.
    """
    index = _read_index(folder)
    if index.get("weights") != weights_digest(subject.model):
        raise DataError(f"the statistics in {str(folder)!r} were taken of other weights than the model's")
    _check_index(folder, index, subject)
    device = device_of(subject.model)
    by_name = {s.name: s for s in subject.sublayers}
    try:
        method = Method.from_dict(index["method"])
        options = CalibrationOptions(**{**index["calibration"], "precision": index["precision"]})
        reading = _reading(index, subject)
        sublayers = [by_name[name] for name in index["order"]]
        stored = tensors_of(_checked(folder, _BATCHES, index), device)
        count, differentiated = int(index["batches"]), int(index["differentiated"])
        batches = [replace(_batch(stored, i), differentiated=i < differentiated) for i in range(count)]
        precision = choose_precision(options.precision, device)
        limit = default_limit(device) if memory_limit is None else memory_limit
        shelf = shelf_for(sublayers, batches, precision, limit=limit)
        found: dict[str, SublayerStatistics] = {}
        for s in sublayers:
            file = _checked(folder, f"{s.name}.safetensors", index)
            found[s.name] = from_tensors(load_file(file), count, shelf, device)
        setting = PassSetting(precision=precision, shelf=shelf)
        lengths = {str(stack): float(length) for stack, length in index["lengths"].items()}
        data = CalibrationSet(batches, lengths, int(index["seed"]), setting)
        whole = {str(name): str(why) for name, why in index["whole"].items()}
        statistics = Statistics(sublayers=found, rows=int(index["rows"]))
        keys = {str(split): str(key) for split, key in index.get("scores", {}).items()}
        scores = load_scores(_checked(folder, SCORES, index), keys) if keys else {}
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError, InputError) as error:
        raise _damaged(folder, error) from error
    return Kept(Calibrated(subject, sublayers, whole, data, reading, statistics), method, options, scores)


def _check_index(folder: Path, index: dict[str, Any], subject: Subject) -> None:
    """Raise DataError when `statistics.json` says what `save_statistics` never writes."""
    order, rules, lengths = (index.get(key) for key in ("order", "rules", "lengths"))
    batches, differentiated, rows = (index.get(key) for key in ("batches", "differentiated", "rows"))
    stacks = {s.name: s.stack.name for s in subject.sublayers}
    wrong = ""
    if not isinstance(order, list) or not order or not all(isinstance(s, str) and s in stacks for s in order):
        wrong = "order"
    elif not isinstance(rules, dict) or not set(order) <= rules.keys():
        wrong = "rules"
    elif not isinstance(lengths, dict) or not all(_is_length(lengths.get(stacks[s])) for s in order):
        wrong = "lengths"
    elif type(batches) is not int or type(differentiated) is not int or not 0 <= differentiated <= batches:
        wrong = "batches"
    elif type(rows) is not int or rows < 1:
        wrong = "rows"
    if wrong:
        raise _damaged(folder, ValueError(f"{wrong} in {KEPT_FILE} is not what was written"))


def _is_length(value: object) -> bool:
    """Whether it is a mean length of rows."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _damaged(folder: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"the statistics in {str(folder)!r} are damaged: {reason}")


def _read_index(folder: Path) -> dict[str, Any]:
    """`statistics.json`. Raises DataError."""
    try:
        index = json.loads((folder / KEPT_FILE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{str(folder)!r} has no readable {KEPT_FILE}; prune once and keep the statistics", option="keep_statistics"
        ) from error
    form = index.get("format") if isinstance(index, dict) else None
    if form != FORMAT or type(form) is not int:
        age = "an earlier" if isinstance(form, int) and form < FORMAT else "another"
        raise DataError(
            f"{str(folder)!r}: the statistics are of format {str(form)[:40]}, which {age} faster-pruner wrote; this "
            f"one reads format {FORMAT}: take them again, or use that version"
        )
    return index


def _checked(folder: Path, name: str, index: dict[str, Any]) -> Path:
    """A file of the folder whose content is what was written. Raises ValueError, KeyError, OSError."""
    file = folder / name
    if index["files"][name] != digest_of(file):
        raise ValueError(f"{name} is not the file that was written")
    return file


def _reading(index: dict[str, Any], subject: Subject) -> Reading:
    """What the objective reads."""
    rules = {str(name): Rule[rule] for name, rule in index["rules"].items()}
    tokens = {str(stack): int(count) for stack, count in index["tokens"].items()}
    order = [str(name) for name in index["ran"]]
    return Reading(rules, order, tokens, subject.model, predictions_of(subject.objective))


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file; tensors may share memory."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, file)


def _batches_as_tensors(batches: Sequence[Batch]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        found |= {f"{i}/inputs/{key}": value for key, value in batch.inputs.items()}
        found[f"{i}/rows"] = batch.rows
        if batch.labels is not None:
            found[f"{i}/labels"] = batch.labels
        if batch.positions is not None:
            found[f"{i}/positions"] = batch.positions
    return found


def _batch(stored: dict[str, Tensor], i: int) -> Batch:
    """The i-th batch."""
    prefix = f"{i}/inputs/"
    inputs = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    labels, positions = stored.get(f"{i}/labels"), stored.get(f"{i}/positions")
    return Batch(inputs=inputs, rows=stored[f"{i}/rows"], labels=labels, positions=positions)


def as_tensors(own: SublayerStatistics) -> dict[str, Tensor]:
    """Statistics of one sublayer by name."""
    found = {"rows": torch.tensor(own.rows)}
    for name, several in (("read", own.read), ("targets", own.targets), ("sources", own.sources)):
        found |= {f"{name}/{i}": tensor for i, tensor in enumerate(several)}
    for name, moment in (("x", own.x), ("y_gradient", own.y_gradient)):
        if moment is not None:
            found |= {f"{name}{_GRAM}": moment.about_centre, f"{name}/total": moment.total_about_centre}
            found |= {f"{name}/centre": moment.centre, f"{name}/count": torch.tensor(moment.count)}
    if own.mask_gradients is not None:
        found["mask_gradients"] = own.mask_gradients
    return found


def from_tensors(stored: Mapping[str, Tensor], batches: int, shelf: Shelf, device: torch.device) -> SublayerStatistics:
    """Statistics of one sublayer, on a device: of tensors on the CPU."""
    stored = {name: t.to(home(device) if name.endswith(_GRAM) else device) for name, t in stored.items()}
    lists = {"targets": HiddenStates(shelf), "sources": HiddenStates(shelf)}
    for name, kept in lists.items():
        for i in range(batches):
            if f"{name}/{i}" in stored:
                kept.append(stored[f"{name}/{i}"].clone())
    return SublayerStatistics(
        mask_gradients=stored.get("mask_gradients"),
        x=_moment(stored, "x"),
        y_gradient=_moment(stored, "y_gradient"),
        rows=int(stored["rows"]),
        read=[stored[f"read/{i}"] for i in range(batches)],
        **lists,
    )


def _moment(stored: dict[str, Tensor], name: str) -> SecondMoment | None:
    """A second moment, None when it was not kept."""
    if f"{name}{_GRAM}" not in stored:
        return None
    total, centre, count = (stored[f"{name}/{part}"] for part in ("total", "centre", "count"))
    return SecondMoment.of(stored[f"{name}{_GRAM}"], total, centre, int(count))
