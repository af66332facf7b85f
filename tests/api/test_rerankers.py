"""Folders of CrossEncoder and plain one-logit classifiers: pruned as rerankers, and opened by CrossEncoder again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, ModernBertConfig, XLMRobertaConfig

import fresh
import tiny
from command import run
from faster_pruner import Budget, Columns, Data, cut_again, evaluate, inspect, prune
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.reranker import scoring_of
from faster_pruner.data.sources import Source, load_split
from faster_pruner.errors import OptionError
from faster_pruner.host.folders import Output
from faster_pruner.model.scoring import Scoring

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]
pytest.importorskip("sentence_transformers")

SETTINGS = "config_sentence_transformers.json"
PAIRS = [
    ["w1 w2 w3", "w4 w5"],
    ["w1 w2 w3", "w60 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20"],
    ["w7", "w8 w2"],
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-logit classifier that knows nothing of sentence-transformers."""
    return tiny.save_checkpoint(tmp_path_factory.mktemp("plain") / "classifier", labels=1)


@pytest.fixture(scope="module")
def dense(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CrossEncoder with an activation, a prompt and a limit of its own."""
    from sentence_transformers import CrossEncoder

    prompts: dict[str, Any] = {"prompts": {"search": "w9 "}, "default_prompt_name": "search"}
    model = CrossEncoder(str(plain), device="cpu", max_length=16, activation_fn=torch.nn.Identity(), **prompts)
    folder = tmp_path_factory.mktemp("reranker") / "dense"
    model.save_pretrained(str(folder))
    return folder


def rows_of(count: int, seed: int, *, labelled: bool) -> list[dict[str, Any]]:
    """Queries with 5 texts each, in no order."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(0, 90, (length,), generator=generator).tolist())

    queries = [text(3) for _ in range(count // 5)]
    rows: list[dict[str, Any]] = [{"query": queries[i % len(queries)], "text": text(2 + i % 8)} for i in range(count)]
    grades = torch.randint(0, 3, (count,), generator=generator).tolist()
    return [{**row, "label": grade} for row, grade in zip(rows, grades, strict=True)] if labelled else rows


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of pairs without labels."""
    found = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    tiny.write_jsonl(found, rows_of(100, 0, labelled=False))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits with labels."""
    found = tmp_path_factory.mktemp("folder")
    tiny.write_jsonl(found / "train.jsonl", rows_of(60, 1, labelled=True))
    tiny.write_jsonl(found / "validation.jsonl", rows_of(50, 2, labelled=True))
    return found


@pytest.fixture(scope="module")
def small(dense: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CrossEncoder, pruned to sizes that plain transformers cannot open."""
    found = tmp_path_factory.mktemp("small") / "small"
    report = prune(dense, Data(file=file), macs=0.6, output=found).report
    assert not report.opens_plain
    return found


def scores(model: Any, tokenizer: Any, *, prompt: str, limit: int) -> np.ndarray:
    """Logits of `PAIRS` by plain transformers, one at a time."""
    found: list[float] = []
    for query, text in PAIRS:
        inputs = tokenizer(prompt + query, text, return_tensors="pt", truncation=True, max_length=limit)
        with torch.no_grad():
            found.append(float(model.cpu().eval()(**inputs).logits))
    return np.array(found)


def test_one_file_of_pairs_is_enough(dense: Path, file: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    result = prune(dense, Data(file=file), macs=0.6, output=tmp_path / "small")
    before, after = (side["validation"] for side in (result.report.before, result.report.after))
    assert result.report.task == "text-ranking"
    assert list(after.metrics) == ["dense_ndcg@10", "dense_spearman"]
    assert before.metrics == pytest.approx({"dense_ndcg@10": 100.0, "dense_spearman": 100.0})
    assert 0 < after.value < 100
    # whole queries are held back: two of them make a tenth
    assert after.rows == 10
    assert result.report.confidence["validation"].metric == "dense_ndcg@10"
    # after the import CrossEncoder opens it as it opened the dense one
    one, other = (CrossEncoder(str(place), device="cpu") for place in (dense, tmp_path / "small"))
    assert type(other.activation_fn) is type(one.activation_fn) is torch.nn.Identity
    assert (other.prompts, other.default_prompt_name, other.max_seq_length) == ({"search": "w9 "}, "search", 16)
    expected = scores(result.model, result.tokenizer, prompt="w9 ", limit=16)
    assert np.allclose(other.predict(PAIRS), expected, atol=1e-5)
    assert not np.allclose(one.predict(PAIRS), expected, atol=1e-3)
    ranked = other.rank("w1 w2 w3", [text for _, text in PAIRS[:2]])
    assert [each["corpus_id"] for each in ranked] == np.argsort(-expected[:2]).tolist()
    card = (tmp_path / "small" / "README.md").read_text()
    assert "pipeline_tag: text-ranking" in card
    assert "library_name: sentence-transformers" in card


def test_rows_are_what_the_cross_encoder_makes_of_them(dense: Path, file: Path) -> None:
    """Prompt, limit and truncation are those of CrossEncoder, whose own scores are the oracle."""
    from sentence_transformers import CrossEncoder

    from faster_pruner.api.rows import describe, evaluation_splits, objective_for
    from faster_pruner.objectives.evaluation import predict_rows

    opened, data = open_checkpoint(dense, device=torch.device("cpu")), Data(file=file)
    task = describe(data)
    encoded = evaluation_splits(data.source(task), task, opened, 64)["validation"]
    found = predict_rows(opened.model, objective_for(opened, task), encoded).values[:, 0]
    rows = load_split(Source(file=file, together="query"), ("validation",))
    pairs = [[row["query"], row["text"]] for row in rows]
    assert np.allclose(CrossEncoder(str(dense), device="cpu").predict(pairs), found, atol=1e-5)


_CHILD = """
import sys, json, numpy
if sys.argv[1] == "with us":
    import faster_pruner
from sentence_transformers import CrossEncoder
trusted = {"trust_remote_code": True} if sys.argv[1] == "trusted" else {}
model = CrossEncoder(sys.argv[2], device="cpu", **trusted)
pairs = json.loads(sys.argv[4])
first = model.predict(pairs)
model.save_pretrained(sys.argv[2] + "-again")
again = CrossEncoder(sys.argv[2] + "-again", device="cpu", **trusted)
assert numpy.allclose(again.predict(pairs), first, atol=1e-6)
assert type(again.activation_fn) is type(model.activation_fn)
assert (again.prompts, again.max_seq_length) == (model.prompts, model.max_seq_length)
numpy.save(sys.argv[3], first)
assert ("faster_pruner" in sys.modules) == (sys.argv[1] == "with us")
"""


def predicted_elsewhere(how: str, folder: Path, place: Path) -> np.ndarray:
    """What a process that has not imported us predicts, also of what it saved."""
    fresh.run(_CHILD, how, folder, place / "found.npy", json.dumps(PAIRS), packages=("sentence_transformers",))
    return np.load(place / "found.npy")


@pytest.mark.parametrize("how", ["trusted", "with us"])
def test_it_opens_where_nobody_imports_us(how: str, dense: Path, file: Path, tmp_path: Path) -> None:
    result = prune(dense, Data(file=file), macs=0.6, output=tmp_path / "small")
    expected = scores(result.model, result.tokenizer, prompt="w9 ", limit=16)
    assert np.allclose(predicted_elsewhere(how, tmp_path / "small", tmp_path), expected, atol=1e-5)


def test_stock_sizes_open_with_nothing_at_all(dense: Path, file: Path, tmp_path: Path) -> None:
    result = prune(dense, Data(file=file), macs=Budget(macs=0.8, allocation="stock"), output=tmp_path / "small")
    assert result.report.opens_plain
    expected = scores(result.model, result.tokenizer, prompt="w9 ", limit=16)
    assert np.allclose(predicted_elsewhere("plain", tmp_path / "small", tmp_path), expected, atol=1e-5)


def test_it_is_not_opened_with_layers_made_anew(small: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        predicted_elsewhere("plain", small, small.parent)


def test_it_trains(small: Path, tmp_path: Path) -> None:
    import datasets
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model = CrossEncoder(str(small), device="cpu")
    before = model.predict(PAIRS)
    rows = [{"a": query, "b": text, "label": float(i % 2)} for i, (query, text) in enumerate(PAIRS)]
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, report_to="none", save_strategy="no", use_cpu=True
    )
    CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), loss=BinaryCrossEntropyLoss(model)
    ).train()
    after = model.predict(PAIRS)
    assert not np.allclose(before, after, atol=1e-7)
    model.save_pretrained(str(tmp_path / "trained"))
    assert np.allclose(CrossEncoder(str(tmp_path / "trained"), device="cpu").predict(PAIRS), after, atol=1e-6)


def test_labels_judge_where_there_are_some(dense: Path, folder: Path, tmp_path: Path) -> None:
    output = Output(folder=tmp_path / "small", statistics=tmp_path / "kept")
    report = prune(dense, Data(folder=folder), macs=0.6, output=output).report
    after = report.after["validation"]
    assert list(after.metrics) == ["ndcg@10", "spearman", "dense_ndcg@10", "dense_spearman"]
    assert after.primary == "ndcg@10"
    alone = evaluate(tmp_path / "small", Data(folder=folder))["validation"]
    assert list(alone.metrics) == ["ndcg@10", "spearman"]
    assert alone.value == pytest.approx(after.value, abs=1e-3)
    again = cut_again(tmp_path / "kept", macs=0.6, data=Data(folder=folder)).report
    assert again.after["validation"].metrics == pytest.approx(after.metrics)
    assert again.task == "text-ranking"
    # with the labels, too
    assert prune(dense, Data(folder=folder), macs=0.7, method="kwon2022").report.after["validation"].rows == 50


def test_a_plain_classifier_of_one_logit(plain: Path, file: Path, tmp_path: Path) -> None:
    """It is a regression until the task says otherwise; CrossEncoder takes the sigmoid of its logit."""
    result = prune(plain, Data(task="text-ranking", file=file), macs=0.6, output=tmp_path / "small")
    assert result.report.after["validation"].primary == "dense_ndcg@10"
    logits = scores(result.model, result.tokenizer, prompt="", limit=64)
    for how in ("trusted", "with us"):
        assert np.allclose(predicted_elsewhere(how, tmp_path / "small", tmp_path), 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert inspect(plain).task == "text-classification"


def test_statistics_remember_what_they_are_for(plain: Path, file: Path, tmp_path: Path) -> None:
    """Another cut of a plain classifier is one of a reranker, with data or without."""
    output = Output(folder=None, statistics=tmp_path / "kept")
    first = prune(plain, Data(task="text-ranking", file=file), macs=0.6, output=output).report
    again = cut_again(tmp_path / "kept", macs=0.6, data=Data(file=file)).report
    assert again.after["validation"].metrics == pytest.approx(first.after["validation"].metrics)
    report = cut_again(tmp_path / "kept", macs=0.6, output=tmp_path / "small").report
    assert report.after == {}
    assert "pipeline_tag: text-ranking" in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["xlm-roberta", "modernbert"])
def test_rerankers_of_other_families(kind: str, file: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    # what people's configs of either have
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    made: Any = {"xlm-roberta": XLMRobertaConfig, "modernbert": ModernBertConfig}[kind]
    config = made(**sizes, **ids, intermediate_size=40, max_position_embeddings=66, num_labels=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0.0, 0.25)
    model.save_pretrained(tmp_path / "dense")
    tokenizer = tiny.make_tokenizer()
    # neither has kinds of tokens
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "dense")
    result = prune(tmp_path / "dense", Data(task="text-ranking", file=file), macs=0.6, output=tmp_path / "small")
    assert result.report.after["validation"].metrics["dense_spearman"] > 20
    logits = scores(result.model, result.tokenizer, prompt="", limit=64)
    found = predicted_elsewhere("trusted", tmp_path / "small", tmp_path)
    assert np.allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_columns_are_named(dense: Path, tmp_path: Path) -> None:
    names = {"query": "question", "text": "passage", "label": "grade"}
    rows = [{names[key]: value for key, value in row.items()} for row in rows_of(100, 3, labelled=True)]
    tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = Columns(text="question", text_pair="passage", label="grade")
    report = prune(dense, Data(file=tmp_path / "rows.jsonl", columns=columns), macs=0.7).report
    assert report.after["validation"].primary == "ndcg@10"
    assert report.after["validation"].rows == 10


def test_the_command_line(dense: Path, plain: Path, file: Path, tmp_path: Path) -> None:
    code, text, _ = run("prune", dense, "--text", file, "--macs", "0.6", "-o", tmp_path / "small")
    assert code == 0
    assert "text-ranking" in text
    assert "dense_ndcg@10" in text
    tiny.write_jsonl(tmp_path / "texts.jsonl", [{"text": "w1"}] * 20)
    task = ("--task", "text-ranking", "--macs", "0.6")
    code, _, errors = run("prune", plain, *task, "--text", tmp_path / "texts.jsonl", "-o", tmp_path / "other")
    assert code == 2
    assert "no column 'query'; it has: text" in errors
    two = tiny.save_checkpoint(tmp_path / "two", labels=2)
    code, _, errors = run("prune", two, *task, "--text", file, "-o", tmp_path / "other")
    assert code == 2
    assert "gives 2 scores a row; text-ranking needs one score" in errors


def test_a_csv_and_a_parquet_file_do_as_well(dense: Path, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(rows_of(100, 4, labelled=True))
    rows.to_csv(str(tmp_path / "rows.csv"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    found = [
        prune(dense, Data(file=tmp_path / f"rows.{suffix}"), macs=0.7).report.after for suffix in ("csv", "parquet")
    ]
    assert found[0] == found[1]
    assert found[0]["validation"].primary == "ndcg@10"


def test_a_cross_encoder_of_classes_is_a_classifier(tmp_path: Path, file: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(tiny.save_checkpoint(tmp_path / "plain", labels=3)), device="cpu").save_pretrained(
        str(tmp_path / "nli")
    )
    assert inspect(tmp_path / "nli").task == "text-classification"
    with pytest.raises(OptionError, match="gives 3 scores a row"):
        prune(tmp_path / "nli", Data(task="text-ranking", file=file), macs=0.6)


def test_how_a_folder_says_that_it_is_one(dense: Path, plain: Path, small: Path, tmp_path: Path) -> None:
    """In its own file since version 5.4; before that in config.json; and not at all."""

    def scoring(place: Path) -> Scoring | None:
        return open_checkpoint(place, device=torch.device("cpu")).scoring

    assert scoring(plain) is None
    assert scoring(dense) == scoring(small) == Scoring(identity=True, prompt="w9 ")
    assert inspect(dense).task == inspect(small).task == "text-ranking"
    for i, (key, value, identity) in enumerate(
        [
            ("sentence_transformers", {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.0"}, True),
            ("sentence_transformers", {"activation_fn": "torch.nn.modules.activation.Sigmoid"}, False),
            ("sbert_ce_default_activation_function", "torch.nn.modules.linear.Identity", True),
            ("sentence_transformers", {"activation_fn": "people.code.Identity"}, False),
        ]
    ):
        folder = tmp_path / str(i)
        tiny.save_checkpoint(folder, labels=1)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        assert scoring(folder) == Scoring(identity=identity)


def test_of_a_model_on_the_hub_the_same_file_says_it(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from faster_pruner.checkpoint import reranker

    asked: list[str] = []

    def cached(place: str, name: str, **options: Any) -> str | None:
        """What the hub's cache has of `people/reranker`; nothing raises."""
        assert not any(options.values())
        asked.append(f"{place} {name}")
        return str(dense / name) if (dense / name).is_file() else None

    monkeypatch.setattr(reranker, "cached_file", cached)
    config = tiny.make_model(labels=1).config
    assert scoring_of("people/reranker", config) == Scoring(identity=True, prompt="w9 ")
    assert asked == [f"people/reranker {name}" for name in (SETTINGS, "sentence_bert_config.json")]
    # a classifier of classes is not asked about
    assert scoring_of("people/other", tiny.make_model().config) is None
    assert len(asked) == 2


def test_an_older_folder_keeps_its_activation(plain: Path, file: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    tiny.save_checkpoint(tmp_path / "dense", labels=1)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    said = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.0"}}
    (tmp_path / "dense" / "config.json").write_text(json.dumps({**config, **said}))
    result = prune(tmp_path / "dense", Data(file=file), macs=0.6, output=tmp_path / "small")
    assert result.report.task == "text-ranking"
    opened = CrossEncoder(str(tmp_path / "small"), device="cpu")
    assert isinstance(opened.activation_fn, torch.nn.Identity)
    expected = scores(result.model, result.tokenizer, prompt="", limit=64)
    assert np.allclose(opened.predict(PAIRS), expected, atol=1e-5)
