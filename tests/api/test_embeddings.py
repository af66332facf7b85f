"""Folders of sentence-transformers: pruned without labels, and opened by sentence-transformers again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fresh
import tiny
from command import run
from faster_pruner import Columns, Data, evaluate, prune
from faster_pruner.checkpoint.layout import Layout, read_layout
from faster_pruner.checkpoint.sentence import read_head
from faster_pruner.errors import CheckpointError, OptionError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]
pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder with a Dense layer, a prompt and a limit of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    place = tmp_path_factory.mktemp("embedding")
    tiny.make_model().base_model.save_pretrained(place / "encoder")
    tiny.make_tokenizer().save_pretrained(place / "encoder")
    transformer = modules.Transformer(str(place / "encoder"))
    transformer.max_seq_length = 12
    torch.manual_seed(0)
    layers = [transformer, modules.Pooling(24, "mean"), modules.Dense(24, 16), modules.Normalize()]
    model = SentenceTransformer(modules=layers, device="cpu", prompts={"query": "w1 "}, default_prompt_name="query")
    model.save_pretrained(str(place / "dense"))
    return place / "dense"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(3)
    lines = [" ".join(f"w{i}" for i in torch.randint(0, 90, (7,), generator=generator)) for _ in range(80)]
    file = tmp_path_factory.mktemp("texts") / "corpus.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return file


def layout(folder: Path) -> Layout:
    found = read_layout(str(folder))
    assert found is not None
    return found


def sentences(texts: Path) -> list[str]:
    return [json.loads(line)["text"] for line in texts.read_text().splitlines()][:6]


def test_the_head_of_a_folder(dense: Path) -> None:
    assert layout(dense).embeds
    head = read_head(layout(dense))
    assert [type(module).__name__ for module in head.modules] == ["Pooling", "Dense", "Normalize"]
    assert (head.similarity, head.prompt) == ("cosine", "w1 ")


def test_one_file_of_texts_is_enough(dense: Path, texts: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    result = prune(dense, Data(file=texts), macs=0.6, output=tmp_path / "small")
    after = result.report.after["validation"]
    assert result.report.task == "sentence-similarity"
    assert after.primary == "neighbours"
    assert result.report.before["validation"].metrics["cosine"] == pytest.approx(100.0)
    assert after.rows == 8
    # after the import sentence-transformers opens it as it is, prompts and limit included
    opened = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    assert opened.default_prompt_name == "query"
    assert opened.max_seq_length == 12
    ours = opened.encode(sentences(texts))
    head, model = read_head(layout(tmp_path / "small")), result.model.cpu().eval()
    for text, vector in zip(sentences(texts), ours, strict=True):
        inputs: Any = result.tokenizer("w1 " + text, return_tensors="pt", truncation=True, max_length=12)
        with torch.no_grad():
            assert np.allclose(head(model(**inputs), inputs)[0].numpy(), vector, atol=1e-5)


_CHILD = """
import sys, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
numpy.save(sys.argv[2], model.encode(sys.argv[3:]))
model.save_pretrained(sys.argv[1] + "-again")
assert "faster_pruner" not in sys.modules
"""


def test_it_opens_where_nobody_imports_us_and_trains(dense: Path, texts: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "small"
    prune(dense, Data(file=texts), macs=0.6, output=folder)
    fresh.run(_CHILD, folder, tmp_path / "found.npy", *sentences(texts), packages=("sentence_transformers",))
    opened = SentenceTransformer(str(folder), device="cpu")
    expected = opened.encode(sentences(texts))
    assert np.allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)
    # truncated vectors, other prompts, and a step of training
    assert SentenceTransformer(str(folder), device="cpu", truncate_dim=4).encode(["w3"]).shape == (1, 4)
    assert not np.allclose(opened.encode(["w3"], prompt=""), opened.encode(["w3"]))
    again = SentenceTransformer(f"{folder}-again", device="cpu", trust_remote_code=True)
    assert np.allclose(again.encode(sentences(texts)), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_a_plain_encoder_with_a_pooling_becomes_such_a_folder(pooling: str, texts: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    tiny.make_model().base_model.save_pretrained(tmp_path / "encoder")
    tiny.make_tokenizer().save_pretrained(tmp_path / "encoder")
    result = prune(tmp_path / "encoder", Data(file=texts, pooling=pooling), macs=0.7, output=tmp_path / "small")
    assert result.report.after["validation"].metrics["cosine"] > 50
    opened = SentenceTransformer(str(tmp_path / "small"), device="cpu")
    assert np.allclose(np.linalg.norm(opened.encode(["w3 w4"]), axis=1), 1, atol=1e-5)
    with pytest.raises(OptionError, match="known are mean, cls, max, lasttoken"):
        prune(tmp_path / "encoder", Data(file=texts, pooling="middle"), macs=0.7)


def test_labelled_pairs_are_judged_by_rank_correlation(dense: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)

    def text() -> str:
        return " ".join(f"w{i}" for i in torch.randint(0, 90, (5,), generator=generator))

    for split, count in (("train", 30), ("validation", 20)):
        rows = [
            {"one": text(), "two": text(), "score": float(torch.rand(1, generator=generator))} for _ in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = Data(folder=tmp_path, columns=Columns(text="one", text_pair="two", label="score"))
    report = prune(dense, data, macs=0.6).report
    assert report.after["validation"].primary == "spearman"
    assert evaluate(dense, data)["validation"].metrics["spearman"] == pytest.approx(
        report.before["validation"].metrics["spearman"]
    )


def test_the_command_line(dense: Path, texts: Path, tmp_path: Path) -> None:
    code, text, _ = run(
        "prune", dense, "--task", "embedding", "--text", texts, "--macs", "0.6", "-o", tmp_path / "small"
    )
    assert code == 0
    assert "neighbours" in text
    code, _, errors = run("prune", dense, "--text", tmp_path / "none.txt", "--macs", "0.6", "-o", tmp_path / "other")
    assert code == 2
    assert "there is no file" in errors


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("[]", "does not list"),
        ("nonsense", "does not list"),
        ([{"type": "os.system", "path": "1_Pooling"}], "only its own are opened"),
        ([{"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}], "only its own are opened"),
        ([{"type": "sentence_transformers.models.Magic", "path": "1_Pooling"}], "is not supported"),
    ],
)
def test_modules_of_strangers_are_one_line(modules: Any, message: str, dense: Path, tmp_path: Path) -> None:
    first = {"type": "sentence_transformers.models.Transformer", "path": ""}
    content = modules if isinstance(modules, str) else json.dumps([first, *modules])
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_head(layout(tmp_path))
