"""Exports of folders of sentence-transformers lie where its ONNX backend looks for them, and give the same vectors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sentences
from command import run
from faster_pruner import Data, Output, prune
from faster_pruner.api.export import export
from faster_pruner.errors import OptionError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]
pytest.importorskip("sentence_transformers")
onnxruntime = pytest.importorskip("onnxruntime")

TEXTS = sentences.make_texts(7, seed=5)


def looked_up(folder: Path, **options: Any) -> tuple[bool, dict[str, Any]]:
    """Whether its backend would export the folder anew, and which file it would open else."""
    from sentence_transformers.backend.utils import backend_should_export

    return backend_should_export(folder, True, options, "model.onnx", "*.onnx", "ONNX")


def in_onnx(folder: Path, file: Path) -> np.ndarray:
    """What its backend does: its own tokens into onnxruntime by the names that optimum uses, then its own modules."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = {entry.name: entry for entry in session.get_inputs()}
    assert wanted.keys() <= {"input_ids", "attention_mask", "token_type_ids"}
    prompt = model.prompts.get(model.default_prompt_name or "")
    features: dict[str, Any] = dict(model.preprocess(TEXTS, prompt=prompt))
    fed = {name: features.get(name, torch.zeros_like(features["input_ids"])).numpy() for name in wanted}
    # optimum sizes its buffers by the names of these sides
    known = {side: fed[name].shape[i] for name, entry in wanted.items() for i, side in enumerate(entry.shape)}
    assert set(known) == {"batch", "sequence"}
    outputs = session.get_outputs()
    assert outputs[0].name == "last_hidden_state"
    assert all(side in known or isinstance(side, int) for entry in outputs for side in entry.shape)
    hidden = torch.from_numpy(session.run(["last_hidden_state"], fed)[0])
    found: Any = {**features, "token_embeddings": hidden}
    for module in list(model)[1:]:
        found = module(found)
    return found["sentence_embedding"].detach().numpy()


def encoded(folder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert isinstance(found, np.ndarray)
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentences.save_texts(tmp_path_factory.mktemp("texts") / "corpus.jsonl", sentences.make_texts(60, seed=7))


@pytest.mark.parametrize(
    ("model_type", "pooling", "side"),
    [
        ("bert", "mean", "right"),
        ("modernbert", "cls", "right"),
        ("qwen3", "lasttoken", "left"),
    ],
)
def test_a_pruned_folder_is_exported_for_its_backend(
    model_type: str, pooling: str, side: str, texts: Path, tmp_path: Path
) -> None:
    dense = sentences.save_folder(
        tmp_path / "dense",
        sentences.make_encoder(model_type),
        pooling=pooling,
        padding_side=side,
        dense=True,
        prompts={"query": "w1 "},
    )
    folder = tmp_path / "small"
    prune(dense, Data(file=texts), macs=0.7, output=folder)
    expected = encoded(folder)
    steps = export(folder, int8=True)
    assert [step.file for step in steps[1:]] == [
        folder / "onnx" / "model.onnx",
        folder / "onnx" / "model_quantized.onnx",
    ]
    assert np.allclose(in_onnx(folder, folder / "onnx" / "model.onnx"), expected, atol=1e-4)
    rounded = in_onnx(folder, folder / "onnx" / "model_quantized.onnx")
    assert (rounded * expected).sum(axis=1).min() > 0.98
    # where sentence-transformers looks: the one file as it is, the other by its name
    should, options = looked_up(folder)
    assert (should, options["subfolder"], options["file_name"]) == (False, "onnx", "model.onnx")
    should, options = looked_up(folder, file_name="model_quantized.onnx")
    assert (should, options["subfolder"], options["file_name"]) == (False, "onnx", "model_quantized.onnx")
    # the folder stays what it was, for torch and for us
    assert np.array_equal(encoded(folder), expected)
    prune(dense, Data(file=texts), macs=0.8, output=Output(folder=folder, overwrite=True))
    assert not (folder / "onnx").exists()


def test_a_transformer_in_a_folder_of_its_own_is_exported_beside_it(tmp_path: Path) -> None:
    place = sentences.into_folder(sentences.save_folder(tmp_path / "dense"))
    file = place / "0_Transformer" / "onnx" / "model.onnx"
    assert [step.file for step in export(place)] == [None, file]
    assert np.allclose(in_onnx(place, file), encoded(place), atol=1e-4)
    should, options = looked_up(place, subfolder="0_Transformer")
    assert (should, options["subfolder"]) == (False, "0_Transformer/onnx")


def test_another_place_and_other_checkpoints_keep_their_names(checkpoint: Path, tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    out = tmp_path / "elsewhere" / "own.onnx"
    code, text, _ = run("export", place, "--int8", "-o", out)
    assert code == 0
    assert str(out) in text
    assert sorted(file.name for file in out.parent.iterdir()) == ["own.int8.onnx", "own.onnx"]
    assert not (place / "onnx").exists()
    plain = Path(shutil.copytree(checkpoint, tmp_path / "plain"))
    assert export(plain)[1].file == plain / "model.onnx"
    with pytest.raises(OptionError, match="there is no folder"):
        export("somebody/embeds")


def test_what_others_put_there_is_not_replaced(tmp_path: Path) -> None:
    place = sentences.save_folder(tmp_path / "dense")
    (place / "onnx").mkdir()
    (place / "onnx" / "model_quantized.onnx").write_bytes(b"not ours")
    code, _, errors = run("export", place, "--int8")
    assert code == 2
    assert "is not replaced" in errors
    assert (place / "onnx" / "model_quantized.onnx").read_bytes() == b"not ours"
    assert not (place / "onnx" / "model.onnx").exists()


def test_its_own_backend_where_it_is_installed(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("optimum.onnxruntime")
    from sentence_transformers import SentenceTransformer

    dense = sentences.save_folder(tmp_path / "dense")
    prune(dense, Data(file=texts), macs=0.7, output=tmp_path / "small")
    export(tmp_path / "small", int8=True)
    found = SentenceTransformer(str(tmp_path / "small"), backend="onnx", device="cpu").encode(TEXTS)
    assert np.allclose(found, encoded(tmp_path / "small"), atol=1e-4)
