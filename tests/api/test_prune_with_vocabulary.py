"""Tokens and units in one run: what pruning one after the other gives, compared with the model as it was given."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

import fresh
from badness import bad_input
from command import run
from corpora import IDS, SIZES, fast, files_of, pruned, save, sentences, write_rows
from faster_pruner import (
    Budget,
    CalibrationOptions,
    Data,
    Limit,
    Output,
    Vocabulary,
    VocabularyResult,
    evaluate,
    load,
    prune,
    prune_vocabulary,
)
from faster_pruner.api import prune as prune_module
from faster_pruner.api.corpus import Corpus
from faster_pruner.api.smaller_vocabulary import choose_tokens, smaller_in_memory
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    FasterPrunerError,
    OptionError,
    OutputError,
    UnsupportedModelError,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency", "own_temporary")]

_SIZES = {**SIZES, "num_labels": 2}
_BART: dict[str, Any] = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", 1), ("attention_heads", 3), ("ffn_dim", 40))
}
# The longest texts of classifiers are shorter; of a language model's there are blocks enough.
SHORT = CalibrationOptions(max_length=32)
CASES: dict[str, tuple[PreTrainedConfig, Any, str]] = {
    "bert, WordPiece": (BertConfig(**_SIZES), AutoModelForSequenceClassification, "WordPiece"),
    "roberta, BPE": (RobertaConfig(**_SIZES, **IDS), AutoModelForSequenceClassification, "BPE of bytes"),
    "xlm-roberta, Unigram": (XLMRobertaConfig(**_SIZES, **IDS), AutoModelForSequenceClassification, "Unigram"),
    "bart, which reads an end": (
        BartConfig(**_BART, d_model=24, max_position_embeddings=64, decoder_start_token_id=2, **IDS),
        AutoModelForSequenceClassification,
        "BPE of bytes",
    ),
    "llama, tied": (
        LlamaConfig(**_SIZES, **IDS, tie_word_embeddings=True),
        AutoModelForCausalLM,
        "BPE with byte fallback",
    ),
}


def make(name: str, folder: Path) -> Path:
    """A checkpoint of a case, in which every embedding stands for a token."""
    config, auto, kind = CASES[name]
    config.vocab_size = len(fast(kind))
    torch.manual_seed(0)
    return save(folder / "dense", auto.from_config(config, attn_implementation="eager").eval(), kind)


_CHILD = """
import sys, transformers
auto = getattr(transformers, sys.argv[2])
model = auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
logits = model(**tokenizer(sys.argv[3], return_tensors="pt")).logits
print([logits.tolist(), model.config.vocab_size, len(tokenizer), "faster_pruner" in sys.modules])
"""


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_one_after_the_other_gives(name: str, tmp_path: Path) -> None:
    dense, rows, texts = make(name, tmp_path), write_rows(tmp_path / "rows"), list(sentences("latin"))
    wanted = Vocabulary(texts=texts, held_out=0)
    both = pruned(dense, rows, macs=0.6, output=tmp_path / "both", vocabulary=wanted, calibration=SHORT)
    first = prune_vocabulary(dense, texts, output=tmp_path / "tokens", held_out=0)
    second = pruned(tmp_path / "tokens", rows, macs=0.6, output=tmp_path / "after", calibration=SHORT)
    assert files_of(tmp_path / "both") == files_of(tmp_path / "after")
    assert both.report.calibration_hash == second.report.calibration_hash
    assert both.report.after == second.report.after
    assert both.report.verified

    # what it is compared with is the model with all its tokens, on rows of its own tokenizer
    own = evaluate(dense, rows, max_length=SHORT.max_length)
    assert both.report.before == own
    whole = load(dense)
    assert both.report.dense.parameters == whole.num_parameters()
    assert both.report.pruned.parameters == load(tmp_path / "both").num_parameters()
    assert len(both.report.latency) > 0
    assert not [w for w in both.report.warnings if "could not" in w or "encoded in another way" in w]

    # one report of both
    found = json.loads((tmp_path / "both" / "result.json").read_text())
    assert (found["macs_asked"], found["model"]) == (0.6, "dense")
    assert both.vocabulary is not None
    assert found["vocabulary"]["tokens"] == both.vocabulary.tokens == first.report.tokens < first.report.tokens_before
    assert found["vocabulary"]["bytes"] == first.report.bytes
    assert sorted(found["files"]) == sorted(
        place.relative_to(tmp_path / "both").as_posix() for place in (tmp_path / "both").rglob("*")
    )
    card = (tmp_path / "both" / "README.md").read_text()
    assert "of its encoder's MACs and " in card
    assert f"{first.report.tokens} of {first.report.tokens_before} tokens are left" in card
    assert "Vocabulary" not in (tmp_path / "after" / "README.md").read_text()

    # where nobody has imported us
    auto = CASES[name][1].__name__
    printed = fresh.run(_CHILD, tmp_path / "both", auto, texts[0]).stdout
    scores, words, tokens, imported = ast.literal_eval(printed)
    assert (words, tokens, imported) == (first.report.rows, first.report.tokens, False)
    with torch.no_grad():
        expected = both.model.cpu()(**both.tokenizer(texts[0], return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-5)


def test_rows_that_the_corpus_does_not_know_are_told_of(tmp_path: Path) -> None:
    """The dense model is judged as its own tokenizer encodes them, the pruned one as its new tokenizer does."""
    dense, rows = make("bert, WordPiece", tmp_path), write_rows(tmp_path / "rows", validation="cyrillic")
    result = pruned(dense, rows, macs=0.6, output=tmp_path / "out", vocabulary=list(sentences("latin")))
    assert result.report.before == evaluate(dense, rows)
    after = evaluate(tmp_path / "out", rows)
    assert result.report.after["validation"].metrics == pytest.approx(after["validation"].metrics)
    assert any(
        w.startswith("24 of 24 validation rows are encoded in another way by the smaller")
        for w in result.report.warnings
    )
    assert result.report.confidence["validation"].metric == "accuracy"
    assert result.vocabulary is not None
    assert result.vocabulary.held_out is not None
    assert result.vocabulary.held_out.texts == 25


def test_predictions_that_make_no_pairs_have_no_interval(tmp_path: Path) -> None:
    """A causal language model predicts every token: of other texts the smaller vocabulary makes more of them."""
    dense = make("llama, tied", tmp_path)
    rows = write_rows(tmp_path / "rows", validation="cyrillic")
    given = Data(folder=rows.folder)
    result = pruned(dense, given, macs=0.6, vocabulary=list(sentences("latin")), calibration=SHORT)
    assert result.report.after["validation"].primary == "perplexity"
    assert result.report.confidence == {}
    (told,) = [w for w in result.report.warnings if "no confidence interval" in w]
    assert "other numbers of predictions" in told


def test_shares_are_those_of_the_model_with_all_its_tokens(tmp_path: Path) -> None:
    dense, rows = make("bert, WordPiece", tmp_path), write_rows(tmp_path / "rows")
    everything = (Path(dense) / "model.safetensors").stat().st_size
    budget = Budget(limits=(Limit(cost="bytes", share=0.65),))
    result = pruned(dense, rows, macs=budget, vocabulary=list(sentences("latin")))
    (limit,) = result.report.limits
    assert (limit.dense, limit.asked) == (pytest.approx(everything, abs=100), pytest.approx(0.65 * limit.dense))
    assert 4 * result.model.num_parameters() < limit.pruned <= limit.asked
    # with all its tokens, more of the sublayers would have to go
    alone = pruned(dense, rows, macs=budget)
    assert alone.report.macs_kept < result.report.macs_kept
    with pytest.raises(BudgetError, match="with fewer tokens the model meets this budget already"):
        prune(dense, rows, macs=Budget(limits=(Limit(cost="bytes", share=0.99),)), vocabulary=list(sentences("latin")))
    # all MACs may stay where only another cost is limited
    both = Budget(macs=1.0, limits=budget.limits)
    assert pruned(dense, rows, macs=both).report.macs_kept == alone.report.macs_kept


def test_all_macs_kept_is_the_vocabulary_alone(tmp_path: Path) -> None:
    """No rows are needed, and none are read."""
    dense, texts = make("bert, WordPiece", tmp_path), list(sentences("latin"))
    expected = prune_vocabulary(dense, texts, output=tmp_path / "alone", held_out=0.2, seed=3)
    wanted = Vocabulary(texts=texts, held_out=0.2, seed=3)
    for number, (macs, data) in enumerate(
        ((1.0, None), (1, Data(folder=tmp_path / "no rows")), (Budget(macs=1.0), None))
    ):
        output = tmp_path / f"out {number}"
        result = prune(dense, data, macs=macs, output=output, vocabulary=wanted)
        assert isinstance(result, VocabularyResult)
        assert files_of(output) == files_of(tmp_path / "alone")
        assert result.report.held_out == expected.report.held_out


def test_a_result_can_be_pruned_again_in_every_way(tmp_path: Path) -> None:
    dense, rows = make("bert, WordPiece", tmp_path), write_rows(tmp_path / "rows")
    both = pruned(dense, rows, macs=0.7, output=tmp_path / "both", vocabulary=list(sentences("latin")))
    assert both.vocabulary is not None
    units = pruned(tmp_path / "both", rows, macs=0.7, output=tmp_path / "units")
    assert units.report.pruned.macs < both.report.pruned.macs
    fewer = prune_vocabulary(tmp_path / "both", sentences("latin")[:60], output=tmp_path / "fewer")
    assert fewer.report.tokens < both.vocabulary.tokens
    found = json.loads((tmp_path / "fewer" / "result.json").read_text())
    assert (found["macs_asked"], found["vocabulary"]["tokens"]) == (0.7, fewer.report.tokens)
    again = pruned(tmp_path / "both", rows, macs=0.7, output=tmp_path / "again", vocabulary=sentences("latin")[:72])
    assert again.report.before == evaluate(tmp_path / "both", rows)
    assert again.report.pruned.parameters < units.report.pruned.parameters
    assert load(tmp_path / "again").num_parameters() == again.report.pruned.parameters


def test_weights_that_both_models_have_are_held_once(tmp_path: Path) -> None:
    dense = open_checkpoint(make("bert, WordPiece", tmp_path), device=torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in dense.model.state_dict().items()}
    chosen = choose_tokens(str(tmp_path / "dense"), dense, Corpus(list(sentences("latin")), []))
    smaller = smaller_in_memory(chosen).opened.model
    own = dict(dense.model.named_parameters())
    other = {name for name, tensor in smaller.named_parameters() if tensor.data_ptr() != own[name].data_ptr()}
    assert other == {"bert.embeddings.word_embeddings.weight"}
    # and the model that was given is what it was
    assert dense.model.config.vocab_size == len(fast("WordPiece"))
    for name, tensor in dense.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_on_the_command_line(tmp_path: Path) -> None:
    dense, _ = make("bert, WordPiece", tmp_path), write_rows(tmp_path / "rows")
    for number, part in enumerate((sentences("latin")[:50], sentences("latin")[50:])):
        (tmp_path / f"{number}.txt").write_text("\n".join(part))
    tokens = ("--vocabulary", tmp_path / "0.txt", "--vocabulary", tmp_path / "1.txt", "--held-out", "0.2")
    rows = ("--data", tmp_path / "rows", "--text-column", "text", "--label-column", "label")
    common = ("prune", dense, *tokens, "-o", tmp_path / "out")
    code, text, errors = run(*common, *rows, "--macs", "0.5")
    assert code == 0, errors
    for words in ("units kept", "of 50 texts that had no say", "MB saved", "weights file", "verified"):
        assert words in text
    assert max(map(len, text.splitlines()[:-1])) <= 80
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["vocabulary"]["tokens"] == len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert found["macs_asked"] == 0.5
    # tokens alone, in place of it, without rows; from a column
    column = "".join(json.dumps({"body": text}) + "\n" for text in sentences("latin"))
    (tmp_path / "2.jsonl").write_text(column)
    alone = ("prune", dense, "--vocabulary", tmp_path / "2.jsonl", "--vocabulary-column", "body", "--macs", "1.0")
    code, text, errors = run(*alone, "-o", tmp_path / "out", "--overwrite", "--seed", "5")
    assert code == 0, errors
    assert "MB saved" in text
    assert "units kept" not in text
    assert prune_vocabulary(dense, sentences("latin"), seed=5).report.tokens == len(
        AutoTokenizer.from_pretrained(tmp_path / "out")
    )
    for arguments, message in (
        (("--macs", "1.0"), "(--vocabulary)"),
        (("--macs", "1"), "nothing would be pruned"),
        (("--macs", "0.5", "--vocabulary-column", "body"), "--vocabulary gives"),
        (("--macs", "0.5", *tokens, "--keep-statistics", tmp_path / "kept"), "without statistics"),
        (("--macs", "0.5", "--vocabulary", tmp_path / "none.txt"), "there is no file"),
        (("--macs", "0.5", "--vocabulary", tmp_path / "2.jsonl"), "no column 'text'"),
        (("--macs", "0.5", *tokens, "--held-out", "1"), "below 1"),
        (("--macs", "1.5", *tokens), "between 0 and 1"),
    ):
        bad_input(" ".join(map(str, arguments)))
        code, text, errors = run("prune", dense, *rows, "-o", tmp_path / "other", *arguments)
        assert (code, text) == (2, "")
        assert message in errors.splitlines()[-1]
        assert not (tmp_path / "other").exists()
        assert not (tmp_path / "kept").exists()


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, rows = make("bert, WordPiece", tmp_path), write_rows(tmp_path / "rows")
    texts = list(sentences("latin")[:60])
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    slow = tmp_path / "slow"
    config = T5Config(d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=3, vocab_size=384, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(slow)
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(slow)
    there = {place.name for place in tmp_path.iterdir()}
    kept = Output(folder=tmp_path / "out", statistics=tmp_path / "kept")
    wrong: list[tuple[dict[str, Any], type[FasterPrunerError], str]] = [
        ({"vocabulary": Data(file=tmp_path / "none.txt")}, DataError, "there is no file"),
        ({"vocabulary": "some words"}, OptionError, "must be a list of texts"),
        ({"vocabulary": []}, OptionError, "must be a list of texts"),
        ({"vocabulary": [" "]}, DataError, "holds no text"),
        ({"model": slow}, UnsupportedModelError, "ByT5Tokenizer is no fast tokenizer"),
        ({"vocabulary": None, "macs": 1.0}, BudgetError, "between 0 and 1.*or give texts"),
        ({"vocabulary": None, "macs": 1}, BudgetError, "nothing would be pruned"),
        ({"macs": True}, BudgetError, "between 0 and 1"),
        ({"output": kept}, OptionError, "without statistics"),
        ({"output": kept, "macs": 1.0}, OptionError, "without statistics"),
        ({"output": tmp_path / "corpus.txt", "vocabulary": Data(file=tmp_path / "corpus.txt")}, OutputError, "a file"),
        ({"data": None}, OptionError, "say what the data holds"),
        ({"macs": 1.0, "model": tmp_path / "nowhere"}, CheckpointError, "does not exist"),
    ]
    usual: dict[str, Any] = {"model": dense, "data": rows, "macs": 0.6, "vocabulary": texts, "output": tmp_path / "out"}
    for given, error, message in wrong:
        bad_input(f"prune with vocabulary {given!r}")
        with pytest.raises(error, match=message) as caught:
            prune(**{**usual, **given})
        assert "\n" not in str(caught.value)
    for options, message in (({"held_out": 1}, "below 1"), ({"held_out": -1}, "at least 0"), ({"seed": -1}, "seed")):
        with pytest.raises(OptionError, match=message):
            Vocabulary(texts=texts, **options)

    # nor does a run that fails after the tokens are gone
    def fails(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prune_module, "calibrate", fails)
    with pytest.raises(KeyboardInterrupt):
        prune(**usual)
    assert {place.name for place in tmp_path.iterdir()} == there


def test_texts_that_can_be_read_once_are_enough(tmp_path: Path) -> None:
    dense, rows = make("bert, WordPiece", tmp_path), write_rows(tmp_path / "rows")
    result = pruned(dense, rows, macs=0.6, vocabulary=iter(sentences("latin")))
    assert result.vocabulary is not None
    assert result.vocabulary.texts == 225
    shutil.rmtree(dense)
    assert result.model.cpu()(**result.tokenizer("ba", return_tensors="pt")).logits.shape == (1, 2)
