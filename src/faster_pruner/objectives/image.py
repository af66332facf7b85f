"""One prediction per image: a class, several labels at once, or a target."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from faster_pruner.data import media
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.files import Rows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.model.limits import image_channels, image_tokens
from faster_pruner.objectives.arrays import encoded_arrays, judged, stacked, with_columns
from faster_pruner.objectives.classification import read_labels
from faster_pruner.objectives.objective import Objective

TASK = "image-classification"
AUTO_CLASS = "AutoModelForImageClassification"
COLUMNS = (media.IMAGE, None, media.LABEL)

_INPUT = "pixel_values"
# Images that are open at the same time.
_CHUNK = 32
# The brightest shade of 8 bits.
_WHITE = 255
# Pillow's name of what a model of so many channels sees.
_MODES = {1: "L", 3: "RGB"}


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
    limit: int,  # noqa: ARG001  images have the size that the processor makes
    labelled: bool = True,
) -> EncodedRows:
    """Open a task's images, bring them into the shape that the model takes, and read their labels.

    Args:
        rows: as loaded.
        task: columns and label names.
        processor: the checkpoint's image processor.
        config: the model's config: size and channels of its images, number and names of its labels.
        limit: of no meaning for images.
        labelled: read the label column; without it the rows carry no labels.

    Raises:
        DataError: a missing column, a damaged image, or a label that the model does not have.
        UnsupportedModelError: the model sees neither colours nor shades of grey.
    """
    channels = image_channels(config)
    if channels not in _MODES:
        raise UnsupportedModelError(f"the model takes images of {channels} channels; those of 1 and 3 are supported")
    given, own = with_columns(rows, task, labelled=labelled)
    # labels are read first: opening the images takes long
    labels = read_labels(given, own, config) if labelled else None
    chunks = _chunks(given, own.text_column, processor, _MODES[channels])
    pixels = stacked(chunks, len(given), of="image processor")
    return encoded_arrays(given, {_INPUT: pixels}, labels=labels, tokens=image_tokens(config))


def _chunks(rows: Rows, column: str, processor: Any, mode: str) -> Iterator[Tensor]:
    """[n, C, H, W] of a few images at a time. Raises DataError."""
    for start in range(0, len(rows), _CHUNK):
        places = range(start, min(start + _CHUNK, len(rows)))
        images = [_opened(rows, i, column, mode) for i in places]
        try:
            yield _processed(processor, images)
        except Exception:  # whatever a processor stumbles over: which image was it?
            singles = [_alone(processor, image, rows.where(i)) for i, image in zip(places, images, strict=True)]
            yield from singles


def _processed(processor: Any, images: Sequence[Any]) -> Tensor:
    """[n, C, H, W] as the checkpoint's processor makes them."""
    return torch.as_tensor(processor(images=list(images), return_tensors="pt")[_INPUT]).float()


def _alone(processor: Any, image: Any, where: str) -> Tensor:
    """[1, C, H, W] of one image. Raises DataError."""
    try:
        return _processed(processor, [image])
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        size = f"{image.width} x {image.height}"
        raise DataError(f"{where}: the image processor cannot take this image of {size} pixels: {reason}") from error


def _opened(rows: Rows, i: int, column: str, mode: str) -> Any:
    """The image of the i-th row, upright, as the model sees it. Raises DataError."""
    from PIL import Image, ImageOps

    where = media.content(rows, i, column)
    try:
        with warnings.catch_warnings():
            # Pillow's, of large images and of palettes
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(where) if isinstance(where, bytes) else where) as image:
                _check_depth(image, rows.where(i))
                return ImageOps.exif_transpose(image).convert(mode)
    except DataError:
        raise
    except Exception as error:  # damaged files raise what they like
        name = f"{len(where)} bytes" if isinstance(where, bytes) else repr(str(where))
        reason = "it is damaged, or no image" if isinstance(where, bytes) else " ".join(str(error).split())
        raise DataError(f"{rows.where(i)}: {name} cannot be opened as an image: {reason}") from error


def _check_depth(image: Any, where: str) -> None:
    """Raise DataError for shades beyond 255, all of which would become white."""
    if image.mode.startswith(("I", "F")):
        darkest, brightest = image.getextrema()
        if darkest < 0 or brightest > _WHITE:
            raise DataError(
                f"{where}: the shades of this image go from {darkest:g} to {brightest:g}, and a model takes 0 to "
                f"{_WHITE}; save it with 8 bits"
            )
