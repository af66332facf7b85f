"""Tasks of the evaluation harness: its own numbers for a pruned model, and clear words where it is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

import harness
import stock_models as stock
from faster_pruner.api.harness import evaluate_tasks
from faster_pruner.checkpoint.saving import write_checkpoint
from faster_pruner.cli.app import app
from faster_pruner.errors import DataError, OptionError, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore")

_WORDS = [f"w{i}" for i in range(3, stock.WORDS)]
_TASK = """task: next_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def decoder(folder: Path) -> tuple[Any, Path]:
    """A pruned Llama with a tokenizer of whole words."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{word: place for place, word in enumerate(_WORDS, 3)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    model, described = stock.dense("llama")
    smaller, left = stock.cut(model, described.sublayers, stock.some(described.sublayers))
    folder.mkdir()
    write_checkpoint(folder, smaller, left, tokenizer, dtype=torch.float32)
    return smaller, folder


def words_of(ids: list[int]) -> str:
    return " ".join(_WORDS[i - 3] for i in ids)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, float]:
    """A folder with a model, a task, and the share of its rows that the model has right."""
    model, folder = decoder(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    rows, right = [], 0
    for place in range(12):
        ids = torch.randint(3, stock.WORDS, (1, 5), generator=generator)
        choices = torch.randint(3, stock.WORDS, (3,), generator=generator).tolist()
        with torch.no_grad():
            best = int(model(input_ids=ids).logits[0, -1, choices].argmax())
        # two in three are what the model would say
        answer = best if place % 3 else (best + 1) % 3
        rows.append({"text": words_of(ids[0].tolist()), "choices": [words_of([c]) for c in choices], "answer": answer})
        right += answer == best
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(_TASK.format(rows=tmp_path / "rows.jsonl"))
    return folder, tmp_path / "task.yaml", 100 * right / len(rows)


def test_a_pruned_model_gets_the_share_that_it_has_right(made: tuple[Path, Path, float]) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    folder, task, share = made
    found = evaluate_tasks(folder, [str(task)])
    assert {name: (each.rows, each.metrics) for name, each in found.items()} == {
        "next_word": (12, {"acc": pytest.approx(share)})
    }
    ran = CliRunner().invoke(app, ["evaluate", str(folder), "--tasks", str(task), "--eval-rows", "4", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["next_word"]["rows"] == 4
    with pytest.raises(OptionError, match="no such task"):
        evaluate_tasks(folder, ["nonesuch"])
    task.write_text(task.read_text().replace("rows.jsonl", "elsewhere.jsonl"))
    with pytest.raises(DataError, match="cannot be run"):
        evaluate_tasks(folder, [str(task)])


def test_what_the_harness_says_is_told_in_percent_by_metric_and_filter(
    made: tuple[Path, Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.install(monkeypatch)
    found = evaluate_tasks(made[0], ["hellaswag", "wikitext", "gsm8k"], rows=40)
    assert {name: each.metrics for name, each in found.items()} == {
        "hellaswag": {"acc": 25.0, "acc_norm": 50.0},
        "wikitext": {"word_perplexity": 31.5},
        "gsm8k": {"exact_match (strict-match)": 12.5, "exact_match (flexible-extract)": 75.0},
    }
    assert [(each.rows, each.primary) for each in found.values()][:2] == [(40, "acc"), (40, "word_perplexity")]
    with pytest.raises(OptionError, match="no such task: .*'nonesuch' is not a registered task"):
        evaluate_tasks(made[0], ["nonesuch"])
    ran = CliRunner().invoke(app, ["evaluate", str(made[0]), "--tasks", "hellaswag, gsm8k"])
    assert ran.exit_code == 0, ran.output
    assert "12.50" in ran.output
    assert all(len(line) <= 80 for line in ran.output.splitlines())


def test_a_classifier_is_refused(
    made: tuple[Path, Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.install(monkeypatch)
    model, described = stock.dense("bert")
    tokenizer = AutoTokenizer.from_pretrained(made[0])
    folder = tmp_path / "classifier"
    folder.mkdir()
    write_checkpoint(folder, model, described.sublayers, tokenizer, dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match="generates no text"):
        evaluate_tasks(folder, ["hellaswag"])


def test_without_the_package_it_says_what_to_install(
    made: tuple[Path, Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(OptionError, match="pip install lm-eval"):
        evaluate_tasks(made[0], ["hellaswag"])
    ran = CliRunner().invoke(app, ["evaluate", str(made[0]), "--tasks", "hellaswag"])
    assert ran.exit_code == 2
    ran = CliRunner().invoke(app, ["evaluate", str(made[0]), "--tasks", "hellaswag", "--text", "texts.txt"])
    assert ran.exit_code == 2
    assert "rows of its own" in " ".join(ran.stderr.split())
