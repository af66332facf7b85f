"""Retrieval folders end to end: the numbers of sentence-transformers, its prompts, and who is never calibrated on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from command import run
from faster_pruner import CalibrationOptions, Columns, Data, evaluate, prune
from faster_pruner.api.rows import calibration_rows, describe, evaluation_splits
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, InputError, OptionError, UnsupportedModelError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]
pytest.importorskip("sentence_transformers")

PROMPTS = {"query": "w1 ", "document": "w2 w3 "}


def save_encoder(folder: Path, prompts: dict[str, str], *, include_prompt: bool = True) -> Path:
    """A tiny folder of sentence-transformers, whose default prompt is one that retrieval does not use."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    tiny.make_model().base_model.save_pretrained(folder / "encoder")
    tiny.make_tokenizer().save_pretrained(folder / "encoder")
    layers = [
        modules.Transformer(str(folder / "encoder")),
        modules.Pooling(24, "mean", include_prompt=include_prompt),
        modules.Normalize(),
    ]
    own = {**prompts, "other": "w9 w8 w7 "}
    model = SentenceTransformer(modules=layers, device="cpu", prompts=own, default_prompt_name="other")
    model.save_pretrained(str(folder / "dense"))
    return folder / "dense"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("retrieval"), PROMPTS)


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many documents that not all of them are found."""
    return tiny.save_collection(tmp_path_factory.mktemp("beir") / "beir", documents=150, queries=60)


def opened_with(model: Path, data: Data) -> tuple[Opened, Task]:
    return open_checkpoint(model, device=torch.device("cpu")), describe(data)


def texts_of(rows: EncodedRows) -> list[str]:
    return [tiny.make_tokenizer().decode(row["input_ids"], skip_special_tokens=True) for row in rows.tokens]


def by_sentence_transformers(model: Path, folder: Path, *, trust: bool = False) -> tuple[float, float]:
    """nDCG@10 and recall@100 of its own evaluator, in percent; relevance is yes or no."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        if float(score) > 0:
            relevant.setdefault(query, set()).add(document)
    judge = InformationRetrievalEvaluator(
        {row["_id"]: row["text"] for row in rows("queries.jsonl") if row["_id"] in relevant},
        {row["_id"]: f"{row['title']} {row['text']}".strip() for row in rows("corpus.jsonl")},
        relevant,
        precision_recall_at_k=[100],
        write_csv=False,
    )
    found = judge(SentenceTransformer(str(model), device="cpu", trust_remote_code=trust))
    return 100 * found["cosine_ndcg@10"], 100 * found["cosine_recall@100"]


def test_numbers_are_those_of_sentence_transformers(dense: Path, beir: Path, tmp_path: Path) -> None:
    folder = tiny.save_collection(tmp_path / "beir", documents=150, queries=60)
    file = folder / "qrels" / "test.tsv"
    file.write_text(file.read_text().replace("\t2\n", "\t1\n"))
    result = prune(dense, Data(folder=folder), macs=0.6, output=tmp_path / "small")
    before, after = result.report.before["test"], result.report.after["test"]
    assert list(before.metrics) == ["ndcg@10", "recall@100", "neighbours", "similarities", "cosine"]
    assert (before.primary, before.rows) == ("ndcg@10", 30)
    for measured, model in ((before, dense), (after, tmp_path / "small")):
        expected = by_sentence_transformers(model, folder, trust=True)
        assert (measured.metrics["ndcg@10"], measured.metrics["recall@100"]) == pytest.approx(expected, abs=1e-6)
    assert before.metrics["recall@100"] < 100
    assert before.metrics["neighbours"] == pytest.approx(100)
    assert 20 < after.metrics["neighbours"] < 100
    own = result.report.confidence["test"]
    assert own.metric == "ndcg@10"
    assert own.before[0] < before.value < own.before[1]
    # alone it is judged by what needs no dense model
    alone = evaluate(tmp_path / "small", Data(task="embedding", folder=folder))["test"]
    assert alone.metrics == pytest.approx({name: after.metrics[name] for name in ("ndcg@10", "recall@100")})
    assert [note for note in result.report.warnings if "calibration rows" in note] == []


def test_queries_and_documents_get_prompts_of_their_own(dense: Path, beir: Path) -> None:
    data = Data(folder=beir)
    opened, task = opened_with(dense, data)
    rows = evaluation_splits(data.source(task), task, opened, 64)["test"]
    found = texts_of(rows)
    assert len(found) == 150 + 30
    assert all(text.startswith("w2 w3 ") for text in found[:150])
    assert all(text.startswith("w1 ") for text in found[150:])
    calibrated = texts_of(
        calibration_rows(data.source(task), task, opened, CalibrationOptions(rows=40), labelled=False)
    )
    documents = [text.startswith("w2 w3 ") for text in calibrated]
    assert (len(documents), sum(documents)) == (40, 20)
    assert all(text.startswith("w1 ") for text, is_one in zip(calibrated, documents, strict=True) if not is_one)
    # mixed: the rows that are differentiated are the first ones
    assert 2 < sum(documents[:20]) < 18


def test_queries_of_the_test_split_are_never_calibrated_on(dense: Path, beir: Path) -> None:
    data = Data(folder=beir)
    opened, task = opened_with(dense, data)
    calibrated = texts_of(calibration_rows(data.source(task), task, opened, CalibrationOptions(), labelled=False))
    judged = texts_of(evaluation_splits(data.source(task), task, opened, 64)["test"])[150:]
    assert len(calibrated) == 150 + 30
    assert set(judged).isdisjoint(calibrated)


def test_queries_that_train_and_test_under_two_ids_are_said(dense: Path, tmp_path: Path) -> None:
    """Of the 12 queries that are judged, one has the text of one that trains."""
    folder = tiny.save_collection(tmp_path / "beir")
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    queries[1]["text"] = queries[0]["text"]
    tiny.write_jsonl(folder / "queries.jsonl", queries)
    (note,) = [note for note in prune(dense, Data(folder=folder), macs=0.6).report.warnings if "flatter" in note]
    assert note.startswith("1 of 12 test rows (8%) are calibration rows, too")


def test_folders_that_call_it_passage(tmp_path: Path, beir: Path) -> None:
    opened, _ = opened_with(save_encoder(tmp_path, {"query": "w1 ", "passage": "w4 "}), Data(folder=beir))
    assert opened.head is not None
    assert (opened.head.query_prompt, opened.head.document_prompt) == ("w1 ", "w4 ")
    opened, _ = opened_with(save_encoder(tmp_path / "none", {}), Data(folder=beir))
    assert opened.head is not None
    assert (opened.head.query_prompt, opened.head.document_prompt) == ("", "")


def test_a_part_of_a_corpus_says_so(dense: Path, beir: Path) -> None:
    data = Data(folder=beir, documents=100)
    (found,) = evaluate(dense, data).values()
    assert found.split == "test (100 of 150 documents)"
    report = prune(dense, data, macs=0.6).report
    assert report.before[found.split].metrics["ndcg@10"] == pytest.approx(found.metrics["ndcg@10"])
    with pytest.raises(OptionError, match="documents is 0"):
        Data(folder=beir, documents=0)


def test_what_cannot_be_searched_with_is_one_line(dense: Path, beir: Path, checkpoint: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path, Data, type[InputError], str]] = [
        (checkpoint, Data(folder=beir), DataError, "is a retrieval folder .* for text-classification needs rows"),
        (dense, Data(folder=beir, columns=Columns(text="text")), OptionError, "columns of a retrieval folder"),
        (
            save_encoder(tmp_path, PROMPTS, include_prompt=False),
            Data(folder=beir),
            UnsupportedModelError,
            "pooling of this model leaves its prompts out",
        ),
    ]
    for model, data, kind, message in cases:
        with pytest.raises(kind, match=message):
            prune(model, data, macs=0.6)
        with pytest.raises(kind, match=message):
            evaluate(model, data)
    small = tiny.save_collection(tmp_path / "beir", documents=4, queries=2)
    with pytest.raises(DataError, match="has 5 texts to calibrate on; at least 8 are needed"):
        prune(dense, Data(folder=small), macs=0.6)


def test_the_command_line(dense: Path, beir: Path, tmp_path: Path) -> None:
    code, text, _ = run(
        "prune", dense, "--task", "embedding", "--data", beir, "--macs", "0.6", "-o", tmp_path / "small"
    )
    assert code == 0
    assert "ndcg@10" in text.splitlines()[0]
    assert "recall@100" in text
    assert max(map(len, text.splitlines()[:20])) <= 80
    code, text, _ = run("evaluate", tmp_path / "small", "--task", "embedding", "--data", beir)
    assert code == 0
    assert "ndcg@10" in text
    code, _, errors = run("evaluate", dense, "--data", beir, "--text-column", "text")
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("faster-pruner: error")]
    assert "columns of a retrieval folder" in line


def test_a_bare_encoder_with_a_pooling_searches_too(beir: Path, tmp_path: Path) -> None:
    tiny.make_model().base_model.save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    (found,) = evaluate(tmp_path, Data(folder=beir, pooling="mean")).values()
    assert found.rows == 30
    assert np.isfinite(found.value)
