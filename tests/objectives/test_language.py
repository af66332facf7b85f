"""Language modelling: the next token of every token, its loss, and blocks of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from faster_pruner import Budget, CalibrationOptions, Data, Output, evaluate, load, prune, prune_model
from faster_pruner.data.batches import Batch
from faster_pruner.data.files import passages
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError
from faster_pruner.model.describe import describe
from faster_pruner.model.reading import Rule, find_reading
from faster_pruner.objectives.language import draw, encode, losses_of, objective_for, per_token
from faster_pruner.objectives.parts import predictions_of

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = Task(name="", text_column="text", label_column="")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=tiny.VOCABULARY, n_inner=48)
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return made


def batch_of(*lengths: int, left: bool = False, labels: bool = False) -> Batch:
    longest = max(lengths)
    ids = torch.randint(4, tiny.VOCABULARY, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    places = torch.arange(longest)
    mask = torch.stack([(places >= longest - n) if left else (places < n) for n in lengths]).long()
    given = ids.masked_fill(mask == 0, -100) if labels else None
    return Batch(inputs={"input_ids": ids, "attention_mask": mask}, rows=torch.arange(len(lengths)), labels=given)


@pytest.mark.parametrize("left", [False, True])
def test_the_loss_is_that_of_transformers(model: Any, left: bool) -> None:
    batch = batch_of(9, 5, left=left)
    with torch.no_grad():
        returned = model(**batch.inputs)
    predictions = per_token(returned, batch)
    assert predictions.rows.tolist() == [0] * 8 + [1] * 4
    # as transformers computes it, from labels that leave padding out
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, -100)
    if left:
        # the first real token has no real token before it
        labels[1, 4] = -100
    with torch.no_grad():
        expected = float(model(**batch.inputs, labels=labels).loss)
    losses = losses_of(predictions).numpy()
    metrics = objective_for(model.config).metrics
    assert np.isclose(losses.mean(), expected, rtol=1e-5)
    assert np.isclose(metrics["perplexity"](losses, losses), np.exp(expected), rtol=1e-5)


def test_prompts_are_not_predicted(model: Any) -> None:
    batch = batch_of(9, labels=True)
    assert batch.labels is not None
    batch.labels[:, :4] = -100
    with torch.no_grad():
        predictions = per_token(model(**batch.inputs), batch)
    assert predictions.labels is not None
    assert predictions.labels.tolist() == batch.inputs["input_ids"][0, 4:].tolist()


@pytest.mark.parametrize("left", [False, True])
def test_every_token_but_the_last_is_read(model: Any, left: bool) -> None:
    batch = batch_of(9, 6, 7, left=left)
    sublayers = describe(model, batch.inputs).sublayers
    rules = find_reading(model, sublayers, batch, predictions_of(objective_for(model.config))).rules
    # what a causal mask hides from earlier tokens has a path all the same
    assert [rules[s.name] for s in sublayers] == [Rule.EVERY] * 2 + [Rule.BUT_LAST] * 2


def test_texts_are_joined_and_cut_into_blocks() -> None:
    tokenizer = tiny.make_tokenizer()
    rows = [{"text": "w1 w2 w3"}, {"text": "  "}, {"text": "w4 w5 w6 w7"}]
    whole = [token for row in (rows[0], rows[2]) for token in tokenizer(row["text"])["input_ids"]]
    found = encode(rows, TEXT, tokenizer, config=None, limit=4)
    assert [list(row["input_ids"]) for row in found.tokens] == [whole[i : i + 4] for i in range(0, len(whole) - 3, 4)]
    short = encode(rows[:1], TEXT, tokenizer, config=None, limit=100)
    assert short.lengths == [len(tokenizer("w1 w2 w3")["input_ids"])]


def test_passages_that_follow_one_another_are_one_text(tmp_path: Path) -> None:
    tokenizer = tiny.make_tokenizer()
    file = tmp_path / "text.txt"
    file.write_text("".join(f"w{i % 90} w{i % 7}\n\n" for i in range(4000)))
    rows = passages(file, split="train")
    assert len(rows) > 9
    whole = tokenizer(file.read_text())["input_ids"]
    found = encode(rows, TEXT, tokenizer, config=None, limit=8)
    assert [token for row in found.tokens for token in row["input_ids"]] == whole[: len(whole) // 8 * 8]
    some = encode(rows.chosen([1, 2, 5]), TEXT, tokenizer, config=None, limit=8)
    texts = [rows[1]["text"] + rows[2]["text"], rows[5]["text"]]
    ids = [token for own in tokenizer(texts)["input_ids"] for token in own]
    assert [token for row in some.tokens for token in row["input_ids"]] == ids[: len(ids) // 8 * 8]


def test_a_calibration_set_is_drawn_from_all_texts() -> None:
    """Blocks, as many as are asked for; a longer draw begins with a shorter one; long texts do not crowd out others."""
    tokenizer = tiny.make_tokenizer()
    generator = torch.Generator().manual_seed(0)
    sizes = [400, 10, 30, 800, 25, 60, 3, 500, 90, 12]
    rows = [{"text": " ".join(f"w{i}" for i in torch.randint(0, 90, (n,), generator=generator))} for n in sizes]
    each = [tokenizer(row["text"])["input_ids"] for row in rows]

    def drawn(count: int, seed: int = 0) -> list[list[int]]:
        found = draw(rows, TEXT, tokenizer, limit=8, count=count, seed=seed)
        return [list(row["input_ids"]) for row in found.tokens]

    blocks = drawn(20)
    assert [len(block) for block in blocks] == [8] * 20
    assert drawn(20) == blocks
    assert drawn(20, seed=1) != blocks
    assert drawn(60)[:20] == blocks
    # all there is, each token once
    every = drawn(10_000)
    assert len(every) == sum(map(len, each)) // 8
    together = sorted(token for own in each for token in own)
    assert len(together) - sum(map(len, every)) < 8
    # a turn takes one piece of every text
    pieces = {tuple(own[at : at + 8]): place for place, own in enumerate(each) for at in range(0, len(own), 8)}
    flat = [token for block in drawn(9) for token in block]
    seen = {place for piece, place in pieces.items() if str(list(piece))[1:-1] in str(flat)[1:-1]}
    assert len(seen) >= 8


def test_a_text_file_alone_is_enough(model: Any, tmp_path: Path, quick_latency: None) -> None:
    model.save_pretrained(tmp_path / "dense")
    tiny.make_tokenizer().save_pretrained(tmp_path / "dense")
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(0, 90, (600, 6), generator=generator).tolist()
    (tmp_path / "text.txt").write_text("".join(" ".join(f"w{i}" for i in row) + "\n" for row in numbers))
    options = CalibrationOptions(rows=24, max_length=16)
    for budget in (Budget(macs=0.6), Budget(max_drop=0.9)):
        result = prune(
            tmp_path / "dense",
            Data(file=tmp_path / "text.txt"),
            macs=budget,
            calibration=options,
            output=Output(folder=tmp_path / "small", overwrite=True),
        )
        assert result.report.calibration_rows <= 24
        assert result.report.mean_length == 16
        assert result.report.after["validation"].rows > 5
        assert result.report.after["validation"].metrics["perplexity"] > 1
    found = evaluate(tmp_path / "small", Data(file=tmp_path / "text.txt", judged=5), max_length=16)
    assert found["validation"].rows == 5
    distilled = prune(
        tmp_path / "dense", Data(file=tmp_path / "text.txt"), macs=0.6, calibration=options, distillation=16
    )
    assert distilled.report.distillation is not None


def test_too_little_text_says_how_many_blocks_it_makes(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "dense")
    tiny.make_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("w1 w2 w3\n" * 40)
    with pytest.raises(DataError, match="makes 1 block of 32 tokens; at least 8 are needed"):
        prune(tmp_path / "dense", Data(file=tmp_path / "text.txt"), macs=0.6)


@pytest.mark.parametrize("rows", [[{"text": " "}], [{"text": ""}, {"text": "\n"}]])
def test_no_text_at_all_is_an_error(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="no row has any text"):
        encode(rows, TEXT, tiny.make_tokenizer(), config=None, limit=8)


def test_a_language_model_is_pruned_from_a_folder_and_in_memory(
    model: Any, tmp_path: Path, quick_latency: None
) -> None:
    model.save_pretrained(tmp_path / "dense")
    tiny.make_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "rows").mkdir()
    generator = torch.Generator().manual_seed(3)
    for split, count in (("train", 40), ("validation", 12)):
        texts = [" ".join(f"w{i}" for i in torch.randint(0, 90, (12,), generator=generator)) for _ in range(count)]
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / "rows" / f"{split}.jsonl").write_text("\n".join(lines))
    result = prune(tmp_path / "dense", Data(folder=tmp_path / "rows"), macs=0.6, output=tmp_path / "small")
    assert result.report.task == "text-generation"
    assert result.report.after["validation"].primary == "perplexity"
    assert load(tmp_path / "small").transformer.h[0].mlp.c_proj.nx < 48
    batches = [batch_of(9, 6).inputs, batch_of(7, 7).inputs]
    assert prune_model(model, batches, macs=0.6).report.macs_kept <= 0.6
