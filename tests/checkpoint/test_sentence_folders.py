"""Folders of sentence-transformers of every layout: what we compute is what its own encode gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertModel,
    Qwen3Model,
    T5Config,
    T5ForConditionalGeneration,
)

import sentences
from faster_pruner import load
from faster_pruner.api.rows import encoded
from faster_pruner.checkpoint import layout
from faster_pruner.checkpoint.companions import read_companions
from faster_pruner.checkpoint.layout import read_layout
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.data.batches import pack
from faster_pruner.data.tasks import Task
from faster_pruner.errors import CheckpointError, UnsupportedModelError
from faster_pruner.objectives.embedding import objective_for
from faster_pruner.objectives.evaluation import gather

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("sentence_transformers")

CPU = torch.device("cpu")
TEXTS = sentences.make_texts(17)


def ours(place: str | Path, texts: list[str] = TEXTS) -> np.ndarray:
    """Embeddings by what we open, in padded batches of several lengths."""
    opened = open_checkpoint(place, device=CPU)
    assert opened.head is not None
    rows = encoded([{"text": t} for t in texts], Task(name="", text_column="text", label_column=""), opened, 64)
    model: Any = opened.model

    def call(inputs: Any) -> Any:
        with torch.no_grad():
            return model(**inputs)

    batches = pack(rows, tokens_per_batch=60, device=CPU)
    assert any(bool((batch.inputs["attention_mask"] == 0).any()) for batch in batches)
    return gather(call, objective_for(opened.head), batches).values


def theirs(place: str | Path, texts: list[str] = TEXTS, **options: Any) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(place), device="cpu").encode(texts, batch_size=8, **options)
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize(
    ("model_type", "pooling", "side"),
    [
        ("bert", "mean", "right"),
        ("bert", "cls", "left"),
        ("xlm-roberta", "mean", "right"),
        ("modernbert", "cls", "right"),
        ("qwen3", "lasttoken", "left"),
        ("qwen3", "lasttoken", "right"),
        ("llama", "lasttoken", "left"),
        ("llama", "mean", "right"),
    ],
)
def test_vectors_are_those_of_encode(model_type: str, pooling: str, side: str, tmp_path: Path) -> None:
    place = sentences.save_folder(
        tmp_path / "dense", sentences.make_encoder(model_type), pooling=pooling, padding_side=side
    )
    assert np.allclose(ours(place), theirs(place), atol=1e-5)


def test_prompts_that_pooling_leaves_out(tmp_path: Path) -> None:
    prompts = {"query": "w1 w2 w3 "}
    place = sentences.save_folder(tmp_path / "dense", include_prompt=False, prompts=prompts)
    opened = open_checkpoint(place, device=CPU)
    assert opened.head is not None
    # [CLS] and three words; [SEP] is behind every text
    assert opened.head.left_out == 4
    assert np.allclose(ours(place), theirs(place), atol=1e-5)
    with_it = sentences.save_folder(tmp_path / "other", prompts=prompts)
    assert np.allclose(ours(with_it), theirs(with_it), atol=1e-5)
    assert not np.allclose(ours(with_it), ours(place), atol=1e-2)


def test_case_is_ignored_where_the_folder_says_so(tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    texts = ["W1 w2 W3 w4 w5", "w7 W8"]
    assert np.allclose(ours(place, texts), theirs(place, texts), atol=1e-5)
    settings = json.loads((place / "sentence_bert_config.json").read_text())
    before = ours(place, texts)
    (place / "sentence_bert_config.json").unlink()
    # the name that an old folder of a RoBERTa has
    (place / "sentence_roberta_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))
    assert np.allclose(ours(place, texts), theirs(place, texts), atol=1e-5)
    assert not np.allclose(ours(place, texts), before, atol=1e-2)


@pytest.mark.parametrize(("model_type", "auto"), [("bert", AutoModelForMaskedLM), ("qwen3", AutoModelForCausalLM)])
def test_heads_that_nobody_uses_are_left_behind(model_type: str, auto: Any, tmp_path: Path) -> None:
    model = sentences.make_encoder(model_type, auto=auto)
    place = sentences.save_folder(tmp_path / "dense", model)
    assert json.loads((place / "config.json").read_text())["architectures"] == [type(model).__name__]
    opened = open_checkpoint(place, device=CPU)
    assert type(opened.model) is {"bert": BertModel, "qwen3": Qwen3Model}[model_type]
    assert type(load(place)) is type(opened.model)
    assert np.allclose(ours(place), theirs(place), atol=1e-5)


def test_only_heads_are_left_behind(tmp_path: Path) -> None:
    """A layer that the config does not know of, and weights that are missing, are errors as ever."""
    place = sentences.save_folder(tmp_path / "dense", sentences.make_encoder("bert", auto=AutoModelForMaskedLM))
    tensors = load_file(place / "model.safetensors")
    layer = {name.replace("layer.1", "layer.2"): value.clone() for name, value in tensors.items() if "layer.1." in name}
    save_file({**tensors, **layer}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no place for: (bert\.)?encoder\.layer\.2"):
        load(place)
    save_file({n: v for n, v in tensors.items() if "layer.1." not in n}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks weights"):
        load(place)


def test_a_pooler_that_is_missing_is_zeros(tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    before = ours(place)
    tensors = load_file(place / "model.safetensors")
    save_file({n: v for n, v in tensors.items() if "pooler" not in n}, place / "model.safetensors", {"format": "pt"})
    model: Any = load(place)
    assert not model.pooler.dense.weight.any()
    assert np.array_equal(ours(place), before)


def test_the_encoder_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    config = T5Config(vocab_size=94, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=3)
    T5ForConditionalGeneration(config).save_pretrained(place)
    with pytest.raises(UnsupportedModelError, match="its encoder alone"):
        load(place)


def test_chat_templates_are_refused(tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    settings = json.loads((place / "sentence_bert_config.json").read_text())
    settings["modality_config"]["message"] = settings["modality_config"]["text"]
    (place / "sentence_bert_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="chat template"):
        open_checkpoint(place, device=CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": ["a"], "default_prompt_name": "a"},
        {"prompts": {"query": 3, "document": [4]}, "default_prompt_name": "query"},
        {"prompts": {"query": ""}, "default_prompt_name": ["query"]},
    ],
)
def test_prompts_that_mean_nothing_are_passed_over(settings: dict[str, Any], tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    file = place / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    head = open_checkpoint(place, device=CPU).head
    assert head is not None
    assert (head.prompt, head.query_prompt, head.document_prompt) == ("", "", "")


@pytest.mark.parametrize("dense", [False, True])
def test_a_transformer_in_a_folder_of_its_own(dense: bool, tmp_path: Path) -> None:
    root = sentences.save_folder(tmp_path / "root", dense=dense, prompts={"query": "w1 "})
    place = sentences.into_folder(Path(shutil.copytree(root, tmp_path / "inner")))
    assert not (place / "config.json").exists()
    assert np.allclose(ours(place), theirs(root), atol=1e-5)
    # its companions are those of the layout that all newer folders have
    found, expected = read_companions(str(place)), read_companions(str(root))
    assert set(found.files) == set(expected.files)
    assert found.whole
    assert ("2_Dense/model.safetensors" in found.files) == dense
    for name in found.files:
        if name == "modules.json":
            assert json.loads(found.files[name]) == json.loads(expected.files[name])
        else:
            assert found.files[name] == expected.files[name], name


def test_other_models_of_sentence_transformers_keep_their_class(checkpoint: Path, tmp_path: Path) -> None:
    """Sparse vectors are pooled, too, but of the scores over the vocabulary."""
    place = sentences.save_folder(tmp_path / "dense", sentences.make_encoder("bert", auto=AutoModelForMaskedLM))
    for name, value in (("model_type", "SparseEncoder"), ("model_type", "CrossEncoder")):
        settings = json.loads((place / "config_sentence_transformers.json").read_text())
        (place / "config_sentence_transformers.json").write_text(json.dumps({**settings, name: value}))
        assert type(load(place)).__name__ == "BertForMaskedLM"
    assert read_layout(str(checkpoint)) is None


# A model on the hub, as its cache has it.
_HUB_CHILD = """
import sys
from pathlib import Path
import numpy, torch
sys.path[:0] = sys.argv[3:]
from test_sentence_folders import TEXTS, ours
from faster_pruner.checkpoint.companions import read_companions
numpy.save(sys.argv[2], ours(sys.argv[1]))
print(*sorted(read_companions(sys.argv[1]).files))
"""


@pytest.mark.parametrize("inner", [False, True])
def test_a_model_of_the_hub_is_opened_with_its_head(inner: bool, tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense", dense=True, prompts={"query": "w1 "})
    expected = theirs(place)
    if inner:
        # the hub is asked for the config in the folder itself
        shutil.copy(place / "config.json", tmp_path / "config.json")
        shutil.copy(tmp_path / "config.json", sentences.into_folder(place) / "config.json")
    cache = tmp_path / "home" / "hub" / "models--somebody--embeds"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    shutil.copytree(place, cache / "snapshots" / ("a" * 40))
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", _HUB_CHILD, "somebody/embeds", tmp_path / "found.npy", tests, tests / "checkpoint"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert np.allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)
    assert found.stdout.split() == sorted(read_companions(str(place)).files)


def test_of_the_hub_no_pickle_and_no_copy_for_other_runtimes_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def first(place: str, name: str, **options: Any) -> str:
        asked["first"] = (place, name)
        return name

    def fake(place: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked["patterns"] = allow_patterns
        raise ConnectionResetError("the hub hung up")

    monkeypatch.setattr(layout, "hf_hub_download", first)
    monkeypatch.setattr(layout, "snapshot_download", fake)
    assert read_layout("somebody/embeds") is None
    assert asked["first"] == ("somebody/embeds", "modules.json")
    wanted = ["modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    left = ["model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx", "README.md"]
    left += ["openvino/openvino_model.xml", "onnx/config.json", "2_Dense/rust_model.ot"]
    assert list(filter_repo_objects([*wanted, *left], allow_patterns=asked["patterns"])) == wanted


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    modules = json.loads((place / "modules.json").read_text())
    for path in ("../dense-encoder", "..", "/", "a/b"):
        (place / "modules.json").write_text(json.dumps([{**modules[0], "path": path}, *modules[1:]]))
        with pytest.raises(CheckpointError, match="only its own are opened"):
            load(place)
