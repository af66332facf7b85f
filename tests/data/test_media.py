"""Images and sounds as rows: folders, names of files in rows, and files inside rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

import colours
import tiny
from badness import bad_input
from faster_pruner.data.files import Rows
from faster_pruner.data.media import content, rows_of_folder
from faster_pruner.data.sources import Source, load_split, sample
from faster_pruner.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"-")
    return folder


def test_a_folder_of_classes(tmp_path: Path) -> None:
    """Sorted, without what is hidden or no image; nothing is opened (they are no images at all)."""
    touch(tmp_path, "train/b/2.PNG", "train/b/1.jpeg", "train/a/deep/er.webp", "train/a/notes.txt", "train/list.csv")
    touch(tmp_path, "train/a/.hidden.png", "train/.cache/x.png", "train/b/._1.jpeg", "train/b/.git/2.png")
    rows = load_split(Source(folder=tmp_path), ("train",))
    found = [(Path(row["image"]["path"]).relative_to(tmp_path).as_posix(), row["label"]) for row in rows]
    assert found == [("train/a/deep/er.webp", "a"), ("train/b/1.jpeg", "b"), ("train/b/2.PNG", "b")]
    assert rows.split == "train"
    assert rows.where(1) == "train, row 2 (counted from 1)"


def test_images_without_classes_and_below_the_tasks_own_folder(tmp_path: Path) -> None:
    touch(tmp_path, "birds/training/1.bmp", "training/2.bmp")
    rows = load_split(Source(folder=tmp_path, subfolder="birds"), ("train", "training"))
    assert list(rows) == [{"image": {"bytes": None, "path": str(tmp_path / "birds/training/1.bmp")}}]


def test_sounds_are_rows_as_well_but_not_beside_images(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.wav", "train/b/2.flac")
    assert [(*row,) for row in load_split(Source(folder=tmp_path), ("train",))] == [("audio", "label")] * 2
    touch(tmp_path, "train/b/cover.jpg")
    bad_input("images and sounds")
    with pytest.raises(DataError, match="holds images and sounds; a model takes one of them"):
        load_split(Source(folder=tmp_path), ("train",))


def test_a_folder_without_images_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.txt")
    bad_input("no images")
    with pytest.raises(DataError, match=r"no file for the split 'train': .* or train/<class>/ with images or sounds"):
        load_split(Source(folder=tmp_path), ("train",))
    # a file of rows comes first
    tiny.write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    touch(tmp_path, "train/a/1.png")
    assert list(load_split(Source(folder=tmp_path), ("train",))) == [{"text": "a"}]
    assert rows_of_folder(tmp_path / "train")[0]["label"] == "a"


def test_what_a_row_may_hold(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/1.png")
    file = tmp_path / "pictures" / "1.png"
    cells: list[tuple[Any, Path | bytes]] = [
        ({"bytes": b"abc", "path": "x.png"}, b"abc"),
        ({"bytes": None, "path": str(file)}, file),
        ({"path": "pictures/1.png"}, file),
        ("pictures/1.png", file),
        (b"abc", b"abc"),
    ]
    rows = Rows([{"image": cell} for cell, _ in cells], folder=tmp_path)
    assert [content(rows, i, "image") for i in range(len(rows))] == [wanted for _, wanted in cells]
    # rows that are drawn know where their files are
    assert content(sample(rows, 5, 0), 0, "image") in [wanted for _, wanted in cells]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "has nothing to open in column 'image': None"),
        ({}, "has nothing to open in column 'image'"),
        ({"bytes": None, "path": None}, "has nothing to open"),
        ({"bytes": b"", "path": None}, "has nothing to open"),
        ("", "has nothing to open"),
        ("a\0b", "has nothing to open"),
        (7, "has nothing to open in column 'image': 7"),
        ("none.png", "there is no file '.*none.png'"),
        ("/", "there is no file"),
        ("x" * 5000, r"there is no file '\.\.\.x{300}'"),
    ],
)
def test_cells_that_hold_nothing(tmp_path: Path, cell: Any, message: str) -> None:
    bad_input(f"image {cell}")
    rows = Rows([{"image": cell}], folder=tmp_path, place="train.jsonl")
    with pytest.raises(DataError, match=message) as caught:
        content(rows, 0, "image")
    assert "train.jsonl, row 1" in str(caught.value)


def encoded(colour: str) -> bytes:
    stream = io.BytesIO()
    colours.make_image(colour, 0).save(stream, "png")
    return stream.getvalue()


def as_dataset() -> Any:
    """As the hub has them: whole files in rows, and class indices with names."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "labels": datasets.ClassLabel(names=["blue", "red"])})
    rows = [{"img": {"bytes": encoded(c), "path": None}, "labels": i} for i, c in enumerate(("blue", "red"))]
    return datasets.Dataset.from_list(rows, features=features)


def test_parquet_as_the_hub_stores_it(tmp_path: Path) -> None:
    as_dataset().to_parquet(str(tmp_path / "train.parquet"))
    rows = load_split(Source(folder=tmp_path), ("train",))
    assert [row["labels"] for row in rows] == [0, 1]
    assert content(rows, 1, "img") == encoded("red")
    assert rows[-1] == rows[1]
    assert list(rows[0:1]) == [rows[0]]
    with pytest.raises(IndexError):
        rows[2]
    assert rows.class_names == {"labels": ("blue", "red")}
    assert sample(rows, 1, 0).class_names == {"labels": ("blue", "red")}


def test_class_names_of_lists_and_metadata_that_make_no_sense(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    from pyarrow import parquet

    classes = datasets.ClassLabel(names=["O", "B-X"])
    tags = datasets.Features({"ner_tags": datasets.List(classes), "n": datasets.Value("int8")})
    file = tmp_path / "train.parquet"
    datasets.Dataset.from_list([{"ner_tags": [0, 1], "n": 3}], features=tags).to_parquet(str(file))
    assert load_split(Source(folder=tmp_path), ("train",)).class_names == {"ner_tags": ("O", "B-X")}
    for said in (
        b"{",
        b"[]",
        b"{}",
        b'{"info": null}',
        b'{"info": {"features": []}}',
        b'{"info": {"features": {"n": 1}}}',
    ):
        table = pyarrow.table({"n": [1]}).replace_schema_metadata({"huggingface": said})
        parquet.write_table(table, file)
        rows = load_split(Source(folder=tmp_path), ("train",))
        assert (list(rows), rows.class_names) == ([{"n": 1}], {})


def test_from_the_hub_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: as_dataset())

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    rows = load_split(Source(hub="somebody/colours"), ("train",))
    assert content(rows, 0, "img") == encoded("blue")
    assert [row["labels"] for row in sample(rows, 2, 0)] in ([0, 1], [1, 0])
    assert rows.class_names == {"labels": ("blue", "red")}
    assert sample(rows, 1, 0).numbers[0] in (1, 2)
