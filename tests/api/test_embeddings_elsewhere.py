"""Pruned folders in the hands of sentence-transformers, in processes that have not imported us or have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

import sentences
from faster_pruner import Budget, Data, Output, cut_again, inspect, prune, prune_vocabulary
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.model.head import Head

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]
pytest.importorskip("sentence_transformers")

TEXTS = sentences.make_texts(9, seed=5)

# Everything that people do with such a model. The guard is what workers of their own processes need everywhere.
_PROGRAM = """
import json, sys
import numpy

if __name__ == "__main__":
    out, way, *texts = sys.argv[1:]
    if way == "imported":
        import faster_pruner
    from sentence_transformers import SentenceTransformer

    how = {"trust_remote_code": True} if way == "code" else {}

    def opened(place, **more):
        return SentenceTransformer(str(place), device="cpu", **how, **more)

    if way == "code":
        # first without their code: what differs is refused, what does not opens as it is
        try:
            SentenceTransformer(out + "/small", device="cpu")
            refusal = ""
        except Exception as error:
            refusal = str(error)
        stock = SentenceTransformer(out + "/stock", device="cpu")
        plain = {"encode": stock.encode(texts), "prompt": stock.encode(texts, prompt_name="other")}
        plain["truncated"] = SentenceTransformer(out + "/stock", device="cpu", truncate_dim=6).encode(texts)
        stock.save_pretrained(out + "/stock-saved")
        plain["saved"] = SentenceTransformer(out + "/stock-saved", device="cpu").encode(texts)
        numpy.savez(out + "/stock.npz", refusal=refusal, **plain)
    model = opened(out + "/small")
    found = {"encode": model.encode(texts), "prompt": model.encode(texts, prompt_name="other")}
    found["truncated"] = opened(out + "/small", truncate_dim=6).encode(texts)
    # a process of its own
    found["pool"] = model.encode(texts, device=["cpu"], chunk_size=3)
    model.save_pretrained(out + "/saved")
    found["saved"] = opened(out + "/saved").encode(texts)
    if "--train" in sys.argv:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.losses import MultipleNegativesRankingLoss

        own = texts[:-1]
        rows = Dataset.from_dict({"anchor": own[:4], "positive": own[4:8]})
        arguments = SentenceTransformerTrainingArguments(
            out + "/trainer", max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True,
        )
        loss = MultipleNegativesRankingLoss(model)
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()
        found["trained"] = model.encode(texts[:-1])
        model.save_pretrained(out + "/trained")
        found["again"] = opened(out + "/trained").encode(texts[:-1])
    assert way == "imported" or "faster_pruner" not in sys.modules
    numpy.savez(out + "/found.npz", **found)
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of old, the class of a pretrained model, a Dense layer and prompts: all at once."""
    model = sentences.make_encoder("bert", auto=AutoModelForMaskedLM)
    place = tmp_path_factory.mktemp("embedding") / "dense"
    sentences.save_folder(place, model, dense=True, prompts={"query": "w1 ", "other": "w2 w3 "})
    return sentences.into_folder(place)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentences.save_texts(tmp_path_factory.mktemp("texts") / "corpus.jsonl", sentences.make_texts(60, seed=7))


def by_hand(folder: Path, prompt: str) -> np.ndarray:
    """Embeddings of texts one by one, of the model as we open it."""
    opened = open_checkpoint(folder, device=torch.device("cpu"))
    head, model, tokenizer = opened.head, opened.model, opened.processor
    assert isinstance(head, Head)
    rows: list[np.ndarray] = []
    for text in TEXTS:
        inputs = tokenizer(prompt + text, return_tensors="pt")  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            rows.append(head(model(**inputs), inputs)[0].numpy())
    return np.stack(rows)


def pruned(dense: Path, texts: Path, folder: Path, *, allocation: str) -> None:
    result = prune(dense, Data(file=texts), macs=Budget(macs=0.75, allocation=allocation), output=folder)
    assert result.report.opens_plain == (allocation == "stock")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    assert json.loads((folder / "modules.json").read_text())[0]["path"] == ""


def judged(folder: Path, found: Any) -> None:
    """What another process has encoded is what we do by hand."""
    count = len(TEXTS)
    expected = by_hand(folder, "w1 ")
    for name in found.keys() & {"encode", "pool", "saved"}:
        assert np.allclose(found[name][:count], expected, atol=1e-5), name
    assert np.allclose(found["prompt"][:count], by_hand(folder, "w2 w3 "), atol=1e-5)
    assert np.allclose(found["truncated"][:count], expected[:, :6], atol=1e-5)


@pytest.mark.parametrize("way", ["code", "imported"])
def test_everything_works_where_people_open_it(way: str, dense: Path, texts: Path, tmp_path: Path) -> None:
    """Also, by the way that has our code shipped along, folders of stock sizes, and free sizes without that code."""
    training = pytest.importorskip("datasets") is not None and pytest.importorskip("accelerate") is not None
    folder = tmp_path / "small"
    pruned(dense, texts, folder, allocation="free")
    if way == "code":
        pruned(dense, texts, tmp_path / "stock", allocation="stock")
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    arguments = [str(tmp_path), way, *TEXTS, *(["--train"] if training else [])]
    done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    assert {"encode", "pool", "saved"} <= found.keys()
    judged(folder, found)
    # training changes it, and what it has become is saved at the same sizes
    assert np.isfinite(found["trained"]).all()
    assert not np.allclose(found["trained"][: len(TEXTS)], by_hand(folder, "w1 "), atol=1e-3)
    assert np.allclose(found["again"], found["trained"], atol=1e-5)
    if way == "code":
        stock = np.load(tmp_path / "stock.npz")
        judged(tmp_path / "stock", stock)
        # transformers' own refusal of layers that differ
        assert "heterogeneous" in str(stock["refusal"])


def test_the_card_says_that_it_is_of_sentence_transformers(dense: Path, texts: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    prune(dense, Data(file=texts), macs=0.75, output=tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.to_dict()["library_name"] == "sentence-transformers"
    assert card.data.to_dict()["pipeline_tag"] == "sentence-similarity"


def test_the_layout_of_old_is_understood_by_every_command(dense: Path, texts: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    assert inspect(dense).model_class == "BertModel"
    output = Output(folder=tmp_path / "small", statistics=tmp_path / "statistics")
    prune(dense, Data(file=texts), macs=0.8, output=output)
    result = cut_again(tmp_path / "statistics", macs=0.75, output=tmp_path / "cut")
    assert result.report.macs_kept <= 0.75
    cut = SentenceTransformer(str(tmp_path / "cut"), device="cpu").encode(TEXTS)
    assert np.allclose(cut, by_hand(tmp_path / "cut", "w1 "), atol=1e-5)
    prune_vocabulary(dense, TEXTS, output=tmp_path / "fewer", held_out=0.0)
    fewer = SentenceTransformer(str(tmp_path / "fewer"), device="cpu")
    assert fewer[0].model.config.vocab_size < 94
    # without the prompt, whose words are not in the corpus
    expected = SentenceTransformer(str(dense), device="cpu").encode(TEXTS, prompt="")
    assert np.array_equal(fewer.encode(TEXTS, prompt=""), expected)
