"""One prediction per sound: a class, several labels at once, or a target."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from faster_pruner.data import media
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, OptionError
from faster_pruner.model.limits import sound_tokens
from faster_pruner.objectives.arrays import encoded_arrays, judged, stacked, with_columns
from faster_pruner.objectives.classification import read_labels
from faster_pruner.objectives.objective import Objective

TASK = "audio-classification"
AUTO_CLASS = "AutoModelForAudioClassification"
COLUMNS = (media.AUDIO, None, media.LABEL)


def objective_for(config: Any) -> Objective:
    """The objective that a model's head was trained for, from its config. Raises UnsupportedModelError."""
    return judged(config, auto_class=AUTO_CLASS, task=TASK)


def encode(
    rows: Sequence[Mapping[str, Any]],
    task: Task,
    processor: Any,
    /,
    *,
    config: Any,
    limit: int,  # noqa: ARG001  sounds are as long as they are
    labelled: bool = True,
) -> EncodedRows:
    """Make of a task's sounds what the model takes, and read their labels.

    Args:
        rows: as loaded.
        task: columns and label names.
        processor: the checkpoint's feature extractor.
        config: the model's config: number and names of its labels.
        limit: of no meaning for sounds.
        labelled: read the label column; without it the rows carry no labels.

    Raises:
        DataError: a missing column, a damaged sound or one at another rate, lengths that the model cannot take side by
            side, or a label that the model does not have.
        OptionError: the package that opens files of sound is missing.
    """
    given, own = with_columns(rows, task, labelled=labelled)
    labels = read_labels(given, own, config) if labelled else None
    name = str(processor.model_input_names[0])
    made: list[Tensor] = []
    for i in range(len(given)):
        samples = _samples(given, i, own.text_column, int(processor.sampling_rate))
        features = processor(samples, sampling_rate=int(processor.sampling_rate), return_tensors="pt")[name]
        made.append(torch.as_tensor(features).float())
    longest = _common_length(made, processor)
    values = stacked(_padded(made, longest), len(given), of="feature extractor")
    return encoded_arrays(given, {name: values}, labels=labels, tokens=sound_tokens(config, values.shape[1:]))


def _common_length(made: Sequence[Tensor], processor: Any) -> int:
    """The longest row of samples. Raises DataError where shorter ones cannot be filled up with silence."""
    lengths = {each.shape[1] for each in made}
    if len(lengths) > 1 and (made[0].ndim > 2 or getattr(processor, "return_attention_mask", False)):
        raise DataError(
            f"the sounds are of different lengths, {min(lengths)} to {max(lengths)}, and this model was not trained on "
            "silence at their ends; cut or repeat them to one length before"
        )
    return max(lengths)


def _padded(made: list[Tensor], longest: int) -> Iterator[Tensor]:
    """Rows [1, ...] with silence at their ends, let go one after the other; features stay as they are."""
    made.reverse()
    while made:
        row = made.pop()
        yield torch.nn.functional.pad(row, (0, longest - row.shape[1])) if row.ndim == 2 else row


def _samples(rows: Rows, i: int, column: str, rate: int) -> Any:
    """[T] float32, one channel, of the i-th row. Raises DataError, OptionError."""
    import numpy as np

    cell: Any = rows[i][column]
    if isinstance(cell, Mapping) and cell.get("array") is not None:
        given = cast("Mapping[str, Any]", cell)
        try:
            samples, found = np.asarray(given["array"], dtype=np.float32), given.get("sampling_rate", rate)
        except (TypeError, ValueError) as error:
            raise DataError(f"{rows.where(i)}: the sound in column {column!r} is no list of numbers") from error
    else:
        samples, found = _read(rows, i, column)
    if found != rate:
        raise DataError(
            f"{rows.where(i)}: the sound has {found} samples a second, and the model hears {rate}; resample the data "
            "before"
        )
    if samples.size == 0 or not np.isfinite(samples).all():
        raise DataError(f"{rows.where(i)}: the sound in column {column!r} is empty, or has values that are no numbers")
    return samples if samples.ndim == 1 else samples.mean(axis=int(samples.shape[0] > samples.shape[1]))


def _read(rows: Rows, i: int, column: str) -> tuple[Any, int]:
    """Samples [T, channels] of a file, and how many there are in a second. Raises DataError, OptionError."""
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:
        raise OptionError(
            "files of sound need soundfile, which is not installed; install faster-pruner[audio]"
        ) from error
    where = media.content(rows, i, column)
    try:
        return soundfile.read(io.BytesIO(where) if isinstance(where, bytes) else where, dtype="float32", always_2d=True)
    except Exception as error:  # damaged files raise what they like
        name = f"{len(where)} bytes" if isinstance(where, bytes) else repr(str(where))
        raise DataError(
            f"{rows.where(i)}: {name} cannot be opened as a sound: {' '.join(str(error).split())}"
        ) from error
