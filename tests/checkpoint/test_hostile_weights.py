"""Weights files that are damaged, missing or elsewhere are one line, before a model is built."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from badness import bad_input
from faster_pruner.checkpoint.opening import load
from faster_pruner.errors import CheckpointError

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return tiny.save_checkpoint(tmp_path_factory.mktemp("weights") / "dense")


def cut(at: Callable[[int], int]) -> Callable[[Path], None]:
    """Keep the beginning of the file."""

    def change(folder: Path) -> None:
        content = (folder / _FILE).read_bytes()
        (folder / _FILE).write_bytes(content[: at(len(content))])

    return change


def content(data: bytes) -> Callable[[Path], None]:
    """Something else instead of the file."""
    return lambda folder: (folder / _FILE).write_bytes(data) and None


def header(text: str) -> bytes:
    """A file with such a header."""
    return struct.pack("<Q", len(text)) + text.encode()


def index(weight_map: object, **more: Any) -> Callable[[Path], None]:
    """An index instead of the file."""

    def change(folder: Path) -> None:
        (folder / _FILE).unlink()
        (folder / _INDEX).write_text(json.dumps({"weight_map": weight_map, **more}))

    return change


def instead(name: str) -> Callable[[Path], None]:
    """Another file instead of the weights."""

    def change(folder: Path) -> None:
        (folder / _FILE).unlink()
        torch.save({"x": torch.zeros(1)}, folder / name)

    return change


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no bytes": (content(b""), "is damaged or cut short"),
    "8 bytes": (cut(lambda n: 8), "is damaged or cut short"),
    "half a header": (cut(lambda n: 200), "is damaged or cut short"),
    "half": (cut(lambda n: n // 2), "is damaged or cut short"),
    "one byte less": (cut(lambda n: n - 1), "is damaged or cut short"),
    "zeros": (content(b"\0" * 64), "no readable safetensors"),
    "a huge header": (content(struct.pack("<Q", 2**60) + b"{}"), "is damaged or cut short"),
    "text": (content(b"not a safetensors file at all"), "is damaged or cut short"),
    "header no JSON": (content(header("{nope")), "is damaged or cut short"),
    "header a list": (content(header("[]")), "is damaged or cut short"),
    "no such dtype": (content(header('{"a":{"dtype":"F7","shape":[],"data_offsets":[0,0]}}')), "is damaged"),
    "offsets outside": (content(header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')), "is damaged"),
    "negative shape": (content(header('{"a":{"dtype":"F32","shape":[-9],"data_offsets":[0,36]}}')), "is damaged"),
    "no tensor": (content(header("{}")), "do not fit config.json: num_hidden_layers is 2, but the file has 0"),
    "a directory": (lambda folder: ((folder / _FILE).unlink(), (folder / _FILE).mkdir()), "there is no model.safe"),
    "nothing": (lambda folder: (folder / _FILE).unlink(), "there is no model.safetensors"),
    "pickled": (instead("pytorch_model.bin"), "only 'pytorch_model.bin', which is never unpickled"),
    "pickled, other name": (instead("weights.pt"), "save_pretrained it again: that writes safetensors"),
    "TensorFlow": (instead("tf_model.h5"), "only 'tf_model.h5'"),
    "missing shard": (index({"a": "model-1.safetensors"}), "model-1.safetensors is missing"),
    "shard elsewhere": (index({"a": "../model.safetensors"}), "names '../model.safetensors', which is no file of"),
    "absolute shard": (index({"a": "/etc/passwd.safetensors"}), "which is no file of the folder"),
    "pickled shard": (index({"a": "pytorch_model.bin"}), "which is no file of the folder"),
    "shard a number": (index({"a": 3}), "names 3"),
    "shard null": (index({"a": None}), "names None"),
    "map a list": (index(["model.safetensors"]), "has no weight_map"),
    "map empty": (index({}), "has no weight_map"),
    "map null": (index(None), "has no weight_map"),
    "index no JSON": (
        lambda folder: ((folder / _FILE).unlink(), (folder / _INDEX).write_text("{")),
        "no readable model.safetensors.index.json",
    ),
    "index a list": (
        lambda folder: ((folder / _FILE).unlink(), (folder / _INDEX).write_text("[]")),
        "holds a list, not an object",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_weights(kind: str, saved: Path, tmp_path: Path) -> None:
    change, message = DAMAGES[kind]
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    change(folder)
    bad_input(f"weights: {kind}")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    said = str(caught.value)
    assert message in said
    assert len(said) < 500
    assert "\n" not in said


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of the file."""
    tensors = load_file(folder / _FILE)
    change(tensors)
    save_file(tensors, folder / _FILE, metadata={"format": "pt"})


KEY = "bert.encoder.layer.1.output.dense.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one is missing": (lambda t: t.pop(KEY), f"lacks weights for {KEY};"),
    "five are missing": (lambda t: [t.pop(key) for key in sorted(t)[5:10]], "(and 2 more)"),
    "one too many": (lambda t: t.update({"bert.extra": torch.zeros(2)}), "no place for: bert.extra;"),
    "a long name": (lambda t: t.update({"x" * 10**4: torch.zeros(2)}), "no place for: xxx"),
    "transposed": (lambda t: t.update({KEY: t[KEY].T.contiguous()}), f"{KEY} is [40, 24] in the file, but [24, 40]"),
    "a dimension more": (lambda t: t.update({KEY: t[KEY][None]}), f"{KEY} is [1, 24, 40] in the file, but [24, 40]"),
    "without entries": (lambda t: t.update({KEY: t[KEY][:0]}), f"{KEY} is [0, 40] in the file, but [24, 40]"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_not_those_of_the_config(kind: str, saved: Path, tmp_path: Path) -> None:
    change, message = TENSORS[kind]
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    rewrite(folder, change)
    bad_input(f"tensors: {kind}")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_transformers_ignores_is_no_error(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    rewrite(folder, lambda tensors: tensors.update({"bert.embeddings.position_ids": torch.arange(64)[None]}))
    for key, value in load(saved).state_dict().items():
        assert torch.equal(load(folder).state_dict()[key], value)


def test_shards_open(saved: Path, tmp_path: Path) -> None:
    model = load(saved)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    for key, value in load(tmp_path / "shards").state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
