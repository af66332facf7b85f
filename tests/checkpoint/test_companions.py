"""What belongs to a checkpoint beside its model is kept byte for byte, and nothing else comes along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from faster_pruner import CalibrationOptions, Data, Output, prune
from faster_pruner.checkpoint import companions
from faster_pruner.checkpoint.companions import read_companions
from faster_pruner.checkpoint.opening import open_checkpoint

SMALL = CalibrationOptions(rows=16)
# no Pooling: that would make it a model of embeddings
NORMALIZE = "sentence_transformers.models.Normalize"
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}

KEPT = {
    # spaces and an order that no program of ours would write
    "vocab.txt": b"[PAD]\n[UNK]\nw0\r\n",
    "special_tokens_map.json": b'{"unk_token":"[UNK]",   "cls_token":"[CLS]"}',
    "chat_template.jinja": "{{ messages }} é".encode(),
    "generation_config.json": b'{ "max_length": 7 }',
    "preprocessor_config.json": b'{"size":\n{"height": 3}}',
    "spiece.vocab": b"\x00\xff",
    "modules.json": json.dumps([TRANSFORMER, {"path": "1_Normalize", "type": NORMALIZE}]).encode(),
    "1_Normalize/config.json": b'{"pooling_mode_mean_tokens" :true}',
    "sentence_bert_config.json": b'{"max_seq_length":5}',
}
LEFT = {
    "README.md": b"mine",
    "tokenization_own.py": b"raise SystemExit",
    ".hidden.json": b"{}",
    ".tokenizer.model": b"hidden",
    "notes.txt": b"-",
    "pytorch_model.bin": b"-",
    "training_args.bin": b"-",
    "1_Normalize/pytorch_model.bin": b"-",
    "onnx/tokenizer.json": b"{}",
    "some_folder/config.json": b"{}",
}


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with a good deal beside it."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    fill(folder, KEPT | LEFT)
    return folder


@pytest.mark.usefixtures("quick_latency")
def test_companions_of_a_checkpoint_come_along_unchanged(source: Path, data: Path, tmp_path: Path) -> None:
    rows, out = Data(task="sst2", folder=data), tmp_path / "out"
    prune(source, rows, macs=0.5, output=out, calibration=SMALL)
    for name in [*KEPT, "tokenizer.json", "tokenizer_config.json"]:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    ours = {"config.json", "model.safetensors", "README.md", "result.json", "masks.json", "modeling_faster_pruner.py"}
    ours |= {"report.html"}
    found = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert found == ours | set(KEPT) | {"tokenizer.json", "tokenizer_config.json"}
    assert (out / "README.md").read_bytes() != LEFT["README.md"]
    # it lists them as its own: it can be replaced, and so can what is pruned from it
    assert set(json.loads((out / "result.json").read_text())["files"]) == found | {"1_Normalize"}
    prune(source, rows, macs=0.4, output=Output(folder=out, overwrite=True), calibration=SMALL)
    prune(out, rows, macs=0.7, output=tmp_path / "twice", calibration=SMALL)
    assert (tmp_path / "twice" / "1_Normalize" / "config.json").read_bytes() == KEPT["1_Normalize/config.json"]
    text = "w1 w2 w89"
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(source)(text)
    assert open_checkpoint(out, device=torch.device("cpu")).processor(text) == AutoTokenizer.from_pretrained(out)(text)


def test_what_leads_out_of_the_folder_or_is_too_large_stays(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "merges.txt").symlink_to(tmp_path / "secret")
    (source / "added_tokens.json").symlink_to(source / "vocab.txt")
    (source / "vocab.json").symlink_to(tmp_path / "nowhere")
    (source / "tokenizer.model").write_bytes(b"x" * 50_000)
    monkeypatch.setattr(companions, "_LARGEST", 49_999)
    found = read_companions(str(source))
    assert set(found.files) == {*KEPT, "tokenizer.json", "tokenizer_config.json", "added_tokens.json"}
    # a file of the processor is missing from it: transformers has to write it
    assert not found.whole
    monkeypatch.setattr(companions, "_LARGEST", 50_000)
    assert "tokenizer.model" in read_companions(str(source)).files


def test_a_folder_of_the_hubs_cache_holds_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--somebody--some-model"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "blobs" / "123").write_bytes(b"words")
    (cache / "snapshots" / "abc" / "vocab.txt").symlink_to("../../blobs/123")
    (tmp_path / "secret").write_bytes(b"secret")
    (cache / "snapshots" / "abc" / "merges.txt").symlink_to("../../../secret")
    assert dict(read_companions(str(cache / "snapshots" / "abc")).files) == {"vocab.txt": b"words"}


@pytest.mark.parametrize(
    "modules",
    [
        b"no json",
        b'{"a": 1}',
        b"[1]",
        json.dumps([TRANSFORMER, {"path": "1_Normalize", "type": "sentence_transformers.models.Dense"}]).encode(),
        None,
    ],
    ids=["no json", "no list", "no modules", "a module with weights", "none"],
)
def test_sentence_transformers_files_come_whole_or_not_at_all(source: Path, modules: bytes | None) -> None:
    (source / "modules.json").unlink()
    if modules is not None:
        (source / "modules.json").write_bytes(modules)
    found = read_companions(str(source))
    of_sentences = {"modules.json", "1_Normalize/config.json", "sentence_bert_config.json"}
    assert set(found.files) == {*KEPT, "tokenizer.json", "tokenizer_config.json"} - of_sentences
    assert found.whole


def test_code_that_stays_behind_is_not_named(source: Path) -> None:
    settings = json.loads((source / "tokenizer_config.json").read_text())
    named = {**settings, "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    assert json.loads(read_companions(str(source)).files["tokenizer_config.json"]) == settings


def test_from_the_hub_only_companions_are_fetched(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(place: str, *, allow_patterns: list[str]) -> str:
        asked.update(place=place, patterns=allow_patterns)
        return str(source)

    monkeypatch.setattr(companions, "snapshot_download", fake)
    assert read_companions("somebody/some-model") == read_companions(str(source))
    assert asked["place"] == "somebody/some-model"
    from huggingface_hub.utils import filter_repo_objects

    fetched = set(filter_repo_objects([*KEPT, *LEFT, "model.safetensors"], allow_patterns=asked["patterns"]))
    assert fetched - {".tokenizer.model"} == set(KEPT)


def test_a_hub_that_does_not_answer_costs_no_more_than_the_companions(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(place: str, **options: object) -> str:
        raise ConnectionResetError("the hub hung up")

    monkeypatch.setattr(companions, "snapshot_download", hang_up)
    assert read_companions("somebody/some-model") == companions.NONE


@pytest.mark.usefixtures("quick_latency")
def test_without_companions_the_tokenizer_is_written_by_transformers(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one file of it could not be taken."""
    rows = Data(task="sst2", folder=data)
    monkeypatch.setattr(companions, "_LARGEST", (source / "tokenizer.json").stat().st_size - 1)
    prune(source, rows, macs=0.5, output=tmp_path / "out", calibration=SMALL)
    text = "w1 w2 w89"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text) == AutoTokenizer.from_pretrained(source)(text)
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == KEPT["chat_template.jinja"]


@pytest.mark.usefixtures("quick_latency")
def test_a_tokenizer_that_reads_a_file_of_another_name_is_written_by_transformers(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is believed to be whole is opened before it is relied on."""
    names = tuple(name for name in companions._PROCESSOR if name != "tokenizer.json")
    monkeypatch.setattr(companions, "_PROCESSOR", names)
    assert read_companions(str(source)).whole
    prune(source, Data(task="sst2", folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    text = "w1 w2 w89"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text) == AutoTokenizer.from_pretrained(source)(text)
