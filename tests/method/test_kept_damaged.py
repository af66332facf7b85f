"""Statistics folders that somebody has changed are one line, never a traceback and never accepted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from badness import bad_input
from faster_pruner import Data, Output, cut_again, prune
from faster_pruner.errors import DataError, InputError

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense checkpoint, and statistics kept of it."""
    place = tmp_path_factory.mktemp("kept")
    dense = tiny.save_checkpoint(place / "dense")
    rows = tiny.save_rows(place / "rows", "sst2", train=24, validation=8)
    prune(str(dense), Data(task="sst2", folder=rows), macs=0.5, output=Output(statistics=place / "kept"))
    return dense, place / "kept"


def index(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change statistics.json."""

    def changed(folder: Path) -> None:
        file = folder / "statistics.json"
        raw = json.loads(file.read_text())
        change(raw)
        file.write_text(json.dumps(raw))

    return changed


def put(**values: Any) -> Change:
    """Other values in statistics.json."""
    return index(lambda raw: raw.update(values))


def swapped(folder: Path) -> None:
    """Two layers' files in each other's place."""
    one, other = (folder / f"layers.{i}.attention.safetensors" for i in range(2))
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


FFN, BATCHES, INDEX = "layers.0.ffn.safetensors", "batches.safetensors", "statistics.json"
SCORES = "scores.safetensors"
CHANGES: dict[str, Change] = {
    "swapped files": swapped,
    "missing file": lambda folder: (folder / FFN).unlink(),
    "missing batches": lambda folder: (folder / BATCHES).unlink(),
    "missing index": lambda folder: (folder / INDEX).unlink(),
    "file cut short": lambda folder: (folder / FFN).write_bytes((folder / FFN).read_bytes()[:-1]),
    "file of garbage": lambda folder: (folder / FFN).write_bytes(b"garbage"),
    "empty file": lambda folder: (folder / FFN).write_bytes(b""),
    "one bit": lambda folder: (folder / FFN).write_bytes((folder / FFN).read_bytes()[:-1] + b"\x7f"),
    "a directory": lambda folder: ((folder / FFN).unlink(), (folder / FFN).mkdir()),
    "index cut short": lambda folder: (folder / INDEX).write_text((folder / INDEX).read_text()[:-9]),
    "index a list": lambda folder: (folder / INDEX).write_text("[3]"),
    "index a number": lambda folder: (folder / INDEX).write_text("3"),
    "index not UTF-8": lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe"),
    "index nested deeply": lambda folder: (folder / INDEX).write_text("[" * 10**5),
    **{f"format {value!r}": put(format=value) for value in (1, 99, None, "3", True, 3.0, [3], {})},
    **{f"weights {value!r}": put(weights=value) for value in ("", None, 3, "0" * 64)},
    **{f"files {value!r}": put(files=value) for value in (None, [], {}, 3, "x", {FFN: None})},
    **{f"batches {value!r}": put(batches=value) for value in (None, "x", 10**6, [], -1)},
    **{f"differentiated {value!r}": put(differentiated=value) for value in (None, "x", [], {})},
    **{f"lengths {value!r}": put(lengths=value) for value in (None, 3, {"layers": "x"}, {"layers": None}, {})},
    **{f"lengths {value!r}": put(lengths={"layers": value}) for value in (float("nan"), float("inf"), -1, 0)},
    **{f"seed {value!r}": put(seed=value) for value in (None, "x", [], float("nan"))},
    **{f"precision {value!r}": put(precision=value) for value in (None, "float7", 3, [])},
    **{f"rows {value!r}": put(rows=value) for value in (None, "x", [], float("nan"), 0, -5)},
    **{f"rules {value!r}": put(rules=value) for value in (None, [], {}, {"layers.0.ffn": "NOPE"}, 3)},
    **{f"order {value!r}": put(order=value) for value in (None, ["../x"], ["layers.9.ffn"], [3], 3, [], "x")},
    **{f"ran {value!r}": put(ran=value) for value in (None, 3)},
    **{f"tokens {value!r}": put(tokens=value) for value in (None, 3, {"layers": "x"})},
    **{f"whole {value!r}": put(whole=value) for value in (None, 3, [1])},
    **{f"method {value!r}": put(method=value) for value in (None, 3, {}, "default", {"selection": 3})},
    **{f"calibration {value!r}": put(calibration=value) for value in (None, 3, {"x": 1}, {"rows": "x"}, [1])},
    **{f"scores {value!r}": put(scores=value) for value in (None, 3, [1], "x", {"validation": "k", "other": "l"})},
    "missing scores": lambda folder: (folder / SCORES).unlink(),
    "scores of garbage": lambda folder: (folder / SCORES).write_bytes(b"garbage"),
    **{f"without {key}": index(lambda raw, key=key: raw.pop(key)) for key in ("order", "rules", "files", "method")},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_statistics(kind: str, world: tuple[Path, Path], tmp_path: Path) -> None:
    dense, kept = world
    folder = Path(shutil.copytree(kept, tmp_path / "kept"))
    CHANGES[kind](folder)
    bad_input(f"statistics: {kind}")
    with pytest.raises(DataError) as caught:
        cut_again(folder, macs=0.5, model=dense)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


ABOUT: list[Any] = [{"model": 3}, {"model": ["x"]}, {"x": 1}, {"model": "a", "task": 3, "calibration_hash": None}]
ABOUT += [{"model": "a", "task": "b", "calibration_hash": "c", "truncated": odd} for odd in ("x", True, 0.5)]


@pytest.mark.parametrize("about", ABOUT, ids=str)
def test_changed_words_about_them(about: Any, world: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world[1], tmp_path / "kept"))
    put(about=about)(folder)
    bad_input(f"statistics about {about}")
    with pytest.raises(DataError, match="damaged"):
        cut_again(folder, macs=0.5)


def test_statistics_of_another_model(world: tuple[Path, Path], tmp_path: Path) -> None:
    tiny.make_model(seed=7).save_pretrained(tmp_path / "other")
    tiny.make_tokenizer().save_pretrained(tmp_path / "other")
    bad_input("statistics of another model")
    with pytest.raises(DataError, match="taken of other weights"):
        cut_again(world[1], macs=0.5, model=tmp_path / "other")


def test_a_dense_model_that_has_moved(world: tuple[Path, Path], tmp_path: Path) -> None:
    dense, kept = world
    folder = Path(shutil.copytree(kept, tmp_path / "kept"))
    moved = str(dense.parent / "moved")
    put(about={"model": moved, "task": "sst2", "calibration_hash": ""})(folder)
    bad_input("a moved dense model")
    with pytest.raises(InputError) as caught:
        cut_again(folder, macs=0.5)
    assert moved in str(caught.value)
    assert caught.value.option == "model"
    assert cut_again(folder, macs=0.5, model=dense).report.macs_kept <= 0.5
