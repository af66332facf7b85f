"""Rows of images to pixel values, and what is no image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import colours
import tiny
from badness import bad_input
from faster_pruner.data.batches import EncodedRows, pack
from faster_pruner.data.files import Rows
from faster_pruner.data.sources import Source, load_split
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, UnsupportedModelError
from faster_pruner.objectives import image
from faster_pruner.objectives.image import encode, objective_for
from faster_pruner.objectives.registry import KINDS, kind_of, objective_of

TASK = Task(name="", text_column="image")
CPU = torch.device("cpu")


def as_bytes(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def encoded(pictures: list[Any], *, labels: list[Any] | None = None, **changes: Any) -> EncodedRows:
    """Images as rows, encoded for the tiny ViT."""
    cells = [p if isinstance(p, bytes) else as_bytes(p) for p in pictures]
    rows = [{"image": {"bytes": cell, "path": None}, "label": 0} for cell in cells]
    for row, label in zip(rows, labels or (), strict=False):
        row["label"] = label
    config = colours.make_vit(**changes.pop("config", {})).config
    processor = colours.make_processor(**changes)
    return encode(Rows(rows), TASK, processor, config=config, limit=9, labelled=labels is not None)


def test_pixel_values_are_those_of_the_checkpoints_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of any size; classes by the names of their folders."""
    monkeypatch.setattr(image, "_CHUNK", 7)
    rows = load_split(Source(folder=colours.save_images(tmp_path)), ("train",))
    config, processor = colours.make_vit().config, colours.make_processor()
    found = encode(rows, TASK, processor, config=config, limit=9)
    pictures = [Image.open(row["image"]["path"]) for row in rows]
    assert torch.equal(found.arrays["pixel_values"], processor(images=pictures, return_tensors="pt")["pixel_values"])
    assert found.labels == [config.label2id[row["label"]] for row in rows]
    # by path, folders are in the order of the alphabet (capitals first), and the model's classes are not
    assert found.labels == sorted(found.labels, key=[1, 2, 0].index)
    assert (len(found), found.split, found.lengths[0], found.mean_length) == (30, "train", 5, 5)


def test_the_rows_are_held_once(tmp_path: Path) -> None:
    found = encoded([colours.make_image("red", i) for i in range(40)])
    storage = found.arrays["pixel_values"].untyped_storage().data_ptr()
    batches = pack(found, tokens_per_batch=50, device=CPU, differentiated=15)
    assert [batch.rows.tolist() for batch in batches] == [
        list(range(10)),
        list(range(10, 15)),
        list(range(15, 25)),
        list(range(25, 35)),
        list(range(35, 40)),
    ]
    assert {batch.inputs["pixel_values"].untyped_storage().data_ptr() for batch in batches} == {storage}
    assert torch.equal(torch.cat([b.inputs["pixel_values"] for b in batches]), found.arrays["pixel_values"])
    assert list(batches[0].inputs) == ["pixel_values"]


def test_the_digest_tells_images_apart() -> None:
    pictures = [colours.make_image("red", i) for i in range(3)]
    assert encoded(pictures).digest() == encoded(pictures).digest()
    assert encoded(pictures).digest() != encoded([pictures[1], pictures[0], pictures[2]]).digest()


def test_every_kind_of_image_is_seen_as_the_model_sees_it() -> None:
    """Greys, palettes and transparency as colours; upright where the file says how it was held."""
    red = colours.make_image("red", 0, size=(16, 16))
    turned = Image.new("RGB", (16, 16))
    turned.paste((255, 0, 0), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pictures = [
        red,
        as_bytes(red, "bmp"),
        red.convert("RGBA"),
        red.convert("L"),
        as_bytes(red.convert("L").convert("P"), transparency=b"\x00" * 256),
        as_bytes(turned, exif=exif),
        turned.transpose(Image.Transpose.ROTATE_270),
    ]
    values = encoded(pictures).arrays["pixel_values"]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[3], values[3, :1].expand(3, -1, -1))
    assert torch.equal(values[3], values[4])
    assert torch.equal(values[5], values[6])
    assert values.dtype is torch.float32


def test_one_channel() -> None:
    grey = {"config": {"num_channels": 1}, "image_mean": [0.5], "image_std": [0.5]}
    values = encoded([colours.make_image("red", 0), colours.make_image("blue", 1).convert("L")], **grey)
    assert values.arrays["pixel_values"].shape == (2, 1, 16, 16)
    model = colours.make_vit(num_channels=1)
    assert model(**values.arrays).logits.shape == (2, 3)
    bad_input("five channels")
    with pytest.raises(UnsupportedModelError, match="images of 5 channels; those of 1 and 3 are supported"):
        encoded([colours.make_image("red", 0)], config={"num_channels": 5})


GOOD = as_bytes(colours.make_image("red", 0), "jpeg")


@pytest.mark.parametrize(
    "damaged",
    [b"x", GOOD[: len(GOOD) // 2], b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, b"GIF89a\xff\xff\xff\xff", GOOD[2:]],
    ids=["no image", "cut short", "no PNG", "no GIF", "no head"],
)
def test_a_damaged_image_is_named(tmp_path: Path, damaged: bytes) -> None:
    bad_input(f"a damaged image of {len(damaged)} bytes")
    folder = colours.save_images(tmp_path, train=9)
    file = sorted((folder / "train" / "blue").iterdir())[1]
    file.write_bytes(damaged)
    rows = load_split(Source(folder=folder), ("train",))
    message = rf"row 5 \(counted from 1\): '.*{file.name}' cannot be opened as an image: "
    with pytest.raises(DataError, match=message) as caught:
        encode(rows, TASK, colours.make_processor(), config=colours.make_vit().config, limit=9)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"row 1 .* bytes cannot be opened as an image: it is damaged, or no image"):
        encoded([damaged])


def test_an_image_that_the_processor_cannot_take_is_named() -> None:
    bad_input("an image that the processor cannot take")
    processor, config = colours.make_processor(), colours.make_vit().config

    class Picky:
        def __call__(self, images: Any, **options: Any) -> Any:
            if any(each.width == 3 for each in images):
                raise ValueError("too\nthin")
            return processor(images=images, **options)

    pictures = [colours.make_image("red", i, size=(20, 3 if i == 4 else 8)) for i in range(6)]
    rows = Rows([{"image": as_bytes(each)} for each in pictures])
    with pytest.raises(
        DataError, match=r"row 5 .*: the image processor cannot take this image of 3 x 20 pixels: too thin"
    ):
        encode(rows, TASK, Picky(), config=config, limit=9, labelled=False)
    fine = rows[:4]
    assert encode(fine, TASK, Picky(), config=config, limit=9, labelled=False).arrays["pixel_values"].shape[0] == 4


def test_images_of_different_sizes_are_refused() -> None:
    bad_input("images of different sizes")
    pictures = [colours.make_image("red", 0), colours.make_image("red", 0, size=(8, 9))]
    with pytest.raises(DataError, match=r"makes rows of different sizes, \[3, 20, 24\] and \[3, 8, 9\]; set it to one"):
        encoded(pictures, do_resize=False)


@pytest.mark.parametrize("columns", [("img", "labels"), ("images", "label"), ("photo", "kind")])
def test_columns_by_other_names(columns: tuple[str, str]) -> None:
    """Common ones are found; any other one is a matter of the task."""
    given = {columns[0]: as_bytes(colours.make_image("red", 0)), columns[1]: "GREEN"}
    task = Task(name="", text_column="photo", label_column="kind") if columns[0] == "photo" else TASK
    config = colours.make_vit().config
    assert encode([given], task, colours.make_processor(), config=config, limit=9).labels == [1]
    with pytest.raises(DataError, match="the data has no column 'image'; it has: text"):
        encode([{"text": "a"}], TASK, colours.make_processor(), config=config, limit=9)


def test_class_indices_mean_what_the_data_call_them() -> None:
    """Where the names are the model's; an order of the data's own is no matter then."""
    cell, config, processor = (
        as_bytes(colours.make_image("red", 0)),
        colours.make_vit().config,
        colours.make_processor(),
    )
    rows = [{"image": cell, "label": i} for i in range(3)]
    for names, wanted in ((("Blue", "red", "green"), [2, 0, 1]), (("a", "b", "c"), [0, 1, 2]), ((), [0, 1, 2])):
        given = Rows(rows, class_names={"label": names})
        assert encode(given, TASK, processor, config=config, limit=9).labels == wanted
    bad_input("a class that the model does not have")
    with pytest.raises(DataError, match=r"label 'pink' in column 'label' is not one of the model's: red, green, blue"):
        encode([{"image": cell, "label": "pink"}], TASK, processor, config=config, limit=9)


def test_of_many_classes_an_error_lists_some() -> None:
    bad_input("a class that a model of many does not have")
    names = {"id2label": {i: f"n{i}" for i in range(1000)}, "label2id": {f"n{i}": i for i in range(1000)}}
    with pytest.raises(DataError, match=r"one of the model's: n0, n1, .*, n19 and 980 more$"):
        encoded([colours.make_image("red", 0)], labels=["pink"], config=names)


def test_labels_are_read_before_images_are_opened() -> None:
    with pytest.raises(DataError, match="label 7 in column 'label'"):
        encoded([b"damaged"], labels=[7])


def test_several_labels_and_targets() -> None:
    several = {"problem_type": "multi_label_classification"}
    red = colours.make_image("red", 0)
    assert encoded([red], labels=[["blue", 0]], config=several).labels == [[1.0, 0.0, 1.0]]
    target = {"id2label": {0: "size"}, "label2id": {"size": 0}}
    assert encoded([red], labels=[2.5], config=target).labels == [2.5]


def test_what_an_image_classifier_is_judged_by() -> None:
    model = colours.make_vit()
    assert kind_of(model) is KINDS["image-classification"]
    found = objective_of(model)
    assert found.reported == ("accuracy", "loss", "calibration_error")
    assert (found.auto_class, found.pipeline_tag) == ("AutoModelForImageClassification", "image-classification")
    assert objective_of(tiny.make_model()).reported[1] == "f1"
    several = objective_for(colours.make_vit(problem_type="multi_label_classification").config)
    assert (several.name, several.pipeline_tag) == ("multi-label classification", "image-classification")
