"""Vocabularies of checkpoints: the same results from fewer embeddings, opened by plain transformers."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

import fresh
from badness import bad_input
from command import run
from corpora import IDS, SIZES, SPECIAL, fast, save, sentences
from faster_pruner import Columns, Data, Output, load, prune, prune_vocabulary
from faster_pruner.errors import DataError, OptionError, OutputError, UnsupportedModelError


def make(config: PreTrainedConfig, auto: Any, kind: str, *, rows: int = 0) -> Any:
    """A random model with an embedding for each token, and some more."""
    config.vocab_size = len(fast(kind)) + rows
    torch.manual_seed(0)
    return auto.from_config(config, attn_implementation="eager").eval()


CASES: dict[str, tuple[PreTrainedConfig, Any, str, str | None]] = {
    "bert": (BertConfig(**SIZES), AutoModel, "WordPiece", None),
    "bert, masked words": (BertConfig(**SIZES), AutoModelForMaskedLM, "WordPiece", None),
    "bert, untied": (BertConfig(**SIZES, tie_word_embeddings=False), AutoModelForMaskedLM, "WordPiece", None),
    "roberta": (RobertaConfig(**SIZES, **IDS), AutoModel, "BPE of bytes", "RobertaTokenizer"),
    "roberta, masked words": (RobertaConfig(**SIZES, **IDS), AutoModelForMaskedLM, "BPE of bytes", None),
    "xlm-roberta": (XLMRobertaConfig(**SIZES, **IDS), AutoModelForMaskedLM, "Unigram", "XLMRobertaTokenizer"),
    "llama": (LlamaConfig(**SIZES, **IDS), AutoModelForCausalLM, "BPE with byte fallback", None),
    "llama, tied": (
        LlamaConfig(**SIZES, **IDS, tie_word_embeddings=True),
        AutoModelForCausalLM,
        "BPE with byte fallback",
        None,
    ),
    "llama, by its own tokenizer": (
        LlamaConfig(**SIZES, **IDS),
        AutoModelForCausalLM,
        "BPE with byte fallback",
        "LlamaTokenizer",
    ),
    "gpt2": (
        GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=64, bos_token_id=2, eos_token_id=2),
        AutoModelForCausalLM,
        "BPE of bytes",
        None,
    ),
    "t5": (
        T5Config(d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, decoder_start_token_id=1, **IDS),
        AutoModelForSeq2SeqLM,
        "Unigram",
        None,
    ),
    "bart": (
        BartConfig(
            **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
               (("layers", 1), ("attention_heads", 3), ("ffn_dim", 40))},
            d_model=24,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
            **IDS,
        ),
        AutoModelForSeq2SeqLM,
        "BPE of bytes",
        None,
    ),
}  # fmt: skip


def returned(model: Any, tokenizer: Any, texts: list[str]) -> list[Tensor]:
    """What a model returns: scores over the vocabulary where it has them, and hidden states."""
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        found = model.cpu()(**inputs, output_hidden_states=True)
    names = ("logits", "last_hidden_state", "encoder_last_hidden_state")
    hidden = found.get("hidden_states") or found.get("decoder_hidden_states")
    return [*(found[name] for name in names if name in found), *hidden]


@pytest.mark.parametrize("name", CASES)
def test_the_corpus_gets_the_same_results(name: str, tmp_path: Path) -> None:
    config, auto, kind, called = CASES[name]
    dense = make(config, auto, kind, rows=3)
    save(tmp_path / "dense", dense, kind, called=called)
    texts = list(sentences("latin", 60))
    result = prune_vocabulary(tmp_path / "dense", texts, output=tmp_path / "small", held_out=0)
    report = result.report
    assert report.held_out is None
    assert report.rows == report.tokens < report.tokens_before == report.rows_before - 3
    assert report.bytes == sum(file.stat().st_size for file in (tmp_path / "small").glob("*.safetensors"))
    assert report.bytes_saved >= 24 * 4 * (report.rows_before - report.rows)

    old = AutoTokenizer.from_pretrained(tmp_path / "dense")
    new = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert type(old) is type(new)
    assert called is None or type(new).__name__ == called
    kept = [old.get_vocab()[token] for token in new.convert_ids_to_tokens(range(len(new)))]
    opened = auto.from_pretrained(tmp_path / "small", attn_implementation="eager").eval()
    for group in (texts[:4], texts[20:24]):
        assert [[kept[i] for i in ids] for ids in new(group)["input_ids"]] == old(group)["input_ids"]
        for before, after in zip(returned(dense, old, group), returned(opened, new, group), strict=True):
            if before.shape != after.shape:
                assert before.shape[-1] == report.rows_before
                before = before[..., kept]
            assert torch.equal(before, after)

    # nothing else of the config is changed, but for ids of tokens
    before, after = AutoConfig.from_pretrained(tmp_path / "dense"), AutoConfig.from_pretrained(tmp_path / "small")
    assert after.vocab_size == report.rows
    for key, value in before.to_dict().items():
        if key.endswith("_token_id") and value is not None and value < len(old):
            assert kept[getattr(after, key)] == value
        elif key not in ("vocab_size", "_name_or_path"):
            assert after.to_dict()[key] == value
    tied = opened.get_output_embeddings()
    if tied is not None:
        assert (tied.weight is opened.get_input_embeddings().weight) == config.get_text_config().tie_word_embeddings


def test_the_generation_config_follows(tmp_path: Path) -> None:
    """A token that only it names stays, and is named by its new id."""
    config, auto, kind, _ = CASES["llama"]
    dense = make(config, auto, kind)
    vocabulary = fast(kind).get_vocab()
    name, unused = max(vocabulary.items(), key=lambda entry: entry[1] if "ста" in entry[0] else -1)
    dense.generation_config.update(max_new_tokens=6, do_sample=False, eos_token_id=[2, unused], suppress_tokens=[1, 3])
    save(tmp_path / "dense", dense, kind)
    result = prune_vocabulary(tmp_path / "dense", list(sentences("latin", 60)), output=tmp_path / "small")
    written = json.loads((tmp_path / "small" / "generation_config.json").read_text())
    assert result.tokenizer.convert_ids_to_tokens(written["eos_token_id"]) == ["</s>", name]
    assert result.tokenizer.convert_ids_to_tokens(written["suppress_tokens"]) == ["<pad>", "<unk>"]
    assert written["eos_token_id"][1] < unused
    assert result.model.generation_config.eos_token_id == written["eos_token_id"]


def test_where_positions_hang_on_padding_its_id_stays(tmp_path: Path) -> None:
    """RoBERTa counts positions from there: all ids below stay, though nothing uses them."""
    config = RobertaConfig(**SIZES, bos_token_id=0, eos_token_id=2, pad_token_id=20)
    dense = make(config, AutoModel, "BPE of bytes")
    save(tmp_path / "dense", dense, "BPE of bytes")
    tokenizer = fast("BPE of bytes")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(20)
    tokenizer.save_pretrained(tmp_path / "dense")
    result = prune_vocabulary(tmp_path / "dense", list(sentences("latin", 30)))
    assert result.model.config.pad_token_id == 20
    texts = list(sentences("latin", 4))
    for before, after in zip(
        returned(dense, tokenizer, texts), returned(result.model, result.tokenizer, texts), strict=True
    ):
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


def classifier(folder: Path) -> Path:
    """A BERT that tells two classes apart, and rows for it."""
    model = make(BertConfig(**SIZES, num_labels=2), AutoModelForSequenceClassification, "WordPiece")
    save(folder / "dense", model, "WordPiece")
    (folder / "rows").mkdir()
    for split, part in (("train", sentences("latin")[:48]), ("validation", sentences("latin")[48:72])):
        rows = "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(part))
        (folder / "rows" / f"{split}.jsonl").write_text(rows)
    return folder / "dense"


@pytest.mark.usefixtures("quick_latency")
def test_before_and_after_pruning(tmp_path: Path) -> None:
    """The vocabulary of a pruned folder, and pruning a folder with a pruned vocabulary."""
    dense = classifier(tmp_path)
    rows = Data(folder=tmp_path / "rows", columns=Columns(text="text", label="label"))
    texts = list(sentences("latin"))
    prune(dense, rows, macs=0.6, output=tmp_path / "pruned")
    first = prune_vocabulary(tmp_path / "pruned", texts, output=tmp_path / "pruned-first", held_out=0)
    prune_vocabulary(dense, texts, output=tmp_path / "tokens", held_out=0)
    prune(tmp_path / "tokens", rows, macs=0.6, output=tmp_path / "tokens-first")
    one, other = load(tmp_path / "pruned-first"), load(tmp_path / "tokens-first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens-first")
    assert tokenizer.get_vocab() == first.tokenizer.get_vocab()
    # the same tokens go the same way through the pruning
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    found = json.loads((tmp_path / "pruned-first" / "result.json").read_text())
    assert found["macs_asked"] == 0.6
    assert found["vocabulary"]["rows"] == first.report.rows
    assert (tmp_path / "pruned-first" / "masks.json").is_file()
    # where faster-pruner is not imported, the file in the folder opens it
    script = (
        "from transformers import AutoModelForSequenceClassification as A, AutoTokenizer as T; import torch, sys\n"
        f"m = A.from_pretrained({str(tmp_path / 'pruned-first')!r}, trust_remote_code=True).eval()\n"
        f"t = T.from_pretrained({str(tmp_path / 'pruned-first')!r})\n"
        f"print([m(**t({texts[0]!r}, return_tensors='pt')).logits.tolist(), 'faster_pruner' in sys.modules])\n"
    )
    printed = fresh.run(script).stdout
    with torch.no_grad():
        expected = one(**first.tokenizer(texts[0], return_tensors="pt")).logits.tolist()
    scores, imported = ast.literal_eval(printed)
    assert not imported
    # weights that lie in the mapped file, not in memory of their own, round otherwise
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_texts_from_every_kind_of_file(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", make(BertConfig(**SIZES), AutoModel, "WordPiece"), "WordPiece")
    texts = sentences("latin")[:40]
    (tmp_path / "a.txt").write_text("\n".join(texts[:10]) + "\n\n \n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts[10:20]))
    (tmp_path / "c.csv").write_text("body\n" + "".join(f"{text}\n" for text in texts[20:30]))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text(json.dumps({"text": [*texts[30].split()]}) + "\n")
    body = Columns(text="body")
    files = [
        Data(file=tmp_path / "a.txt"),
        Data(file=tmp_path / "b.jsonl", columns=body),
        Data(file=tmp_path / "c.csv", columns=body),
        Data(folder=tmp_path / "d", columns=Columns(text="text")),
    ]
    found = prune_vocabulary(dense, files, held_out=0)
    assert found.report.texts == 31
    assert found.report.tokens == prune_vocabulary(dense, texts[:31], held_out=0).report.tokens
    with pytest.raises(DataError, match="no column 'text'; it has: body"):
        prune_vocabulary(dense, Data(file=tmp_path / "b.jsonl"))


def test_what_is_held_out_has_no_say(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", make(BertConfig(**SIZES), AutoModel, "WordPiece"), "WordPiece")
    texts = [*sentences("latin")[:30], *sentences("cyrillic")[:30]]
    report = prune_vocabulary(dense, texts, held_out=0.5, seed=3).report
    assert report.texts == 30
    assert report.held_out is not None
    assert report.held_out.texts == 30
    assert 0 < report.held_out.affected_words < report.held_out.words
    assert report == report.__class__(
        **{**vars(prune_vocabulary(dense, texts, held_out=0.5, seed=3).report), "seconds": report.seconds}
    )
    assert prune_vocabulary(dense, texts, held_out=0.5, seed=4).report.held_out != report.held_out


def test_on_the_command_line(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", make(BertConfig(**SIZES), AutoModel, "WordPiece"), "WordPiece")
    (tmp_path / "one.txt").write_text("\n".join(sentences("latin")[:30]))
    (tmp_path / "two.txt").write_text("\n".join(sentences("latin")[30:60]))
    arguments = ("vocabulary", dense, "--corpus", tmp_path / "one.txt", "--corpus", tmp_path / "two.txt")
    code, text, errors = run(*arguments, "-o", tmp_path / "small")
    assert code == 0, errors
    assert "54 texts" in text
    assert "MB saved" in text
    assert "of 6 texts that had no say" in text
    found = json.loads((tmp_path / "small" / "result.json").read_text())
    assert found["vocabulary"]["tokens"] == len(AutoTokenizer.from_pretrained(tmp_path / "small"))
    assert sorted(found["files"]) == sorted(file.name for file in (tmp_path / "small").iterdir())
    code, _, errors = run(*arguments, "-o", tmp_path / "small")
    assert (code, "--overwrite" in errors) == (2, True)
    assert run(*arguments, "-o", tmp_path / "small", "--overwrite")[0] == 0
    bad_input("no corpus")
    code, _, errors = run("vocabulary", dense, "-o", tmp_path / "other")
    assert (code, "--corpus FILE" in errors) == (2, True)


def test_what_cannot_be_done_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", make(BertConfig(**SIZES), AutoModel, "WordPiece"), "WordPiece")
    (tmp_path / "rows").mkdir()
    texts = list(sentences("latin")[:10])
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ("one text", {}, OptionError, "must be a list of texts"),
        (Data(file=tmp_path / "dense" / "none.txt"), {"output": tmp_path / "x"}, DataError, "there is no file"),
        (Data(folder=tmp_path / "rows"), {"output": tmp_path / "rows"}, OutputError, "whose rows are read"),
        ([], {}, OptionError, "must be a list of texts"),
        ([3], {}, OptionError, "must be a list of texts"),
        (5, {}, OptionError, "must be Iterable"),
        (["\ud83d"], {}, DataError, "half a character"),
        ([" "], {}, DataError, "holds no text"),
        (texts, {"held_out": 1}, OptionError, "below 1"),
        (texts, {"held_out": -1}, OptionError, "at least 0"),
        (texts, {"seed": -1}, OptionError, "seed"),
        (texts, {"output": dense}, OutputError, "which is read"),
        (texts, {"output": Output(folder=tmp_path / "o", statistics=tmp_path / "s")}, OptionError, "statistics"),
    ]
    for given, options, error, message in wrong:
        bad_input(f"vocabulary {given!r} {options!r}")
        with pytest.raises(error, match=message) as caught:
            prune_vocabulary(dense, given, **{"output": tmp_path / "small", **options})
        assert "\n" not in str(caught.value)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["dense", "rows"]


def test_slow_tokenizers_are_refused(tmp_path: Path) -> None:
    """One without the tokenizers library: a model of bytes has no vocabulary to prune anyway."""
    config = T5Config(d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=3, vocab_size=384)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "bytes")
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    bad_input("slow tokenizer")
    with pytest.raises(UnsupportedModelError, match="ByT5Tokenizer is no fast tokenizer.*tokenizer.json") as caught:
        prune_vocabulary(tmp_path / "bytes", ["a b"], output=tmp_path / "small")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_settings_that_hide_ids_are_refused(tmp_path: Path) -> None:
    config, auto, kind, _ = CASES["gpt2"]
    dense = save(tmp_path / "dense", make(config, auto, kind), kind)
    file = dense / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sequence_bias": [[[5], 1.0]]}))
    bad_input("sequence_bias")
    with pytest.raises(UnsupportedModelError, match="sequence_bias"):
        prune_vocabulary(dense, list(sentences("latin", 9)))


def test_files_of_the_old_vocabulary_follow_or_are_left_out(tmp_path: Path) -> None:
    dense = save(tmp_path / "dense", make(BertConfig(**SIZES), AutoModel, "WordPiece"), "WordPiece")
    core = fast("WordPiece").get_vocab()
    (dense / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(core, key=core.__getitem__)))
    (dense / "spiece.model").write_bytes(b"the whole vocabulary")
    (dense / "chat_template.jinja").write_text("{{ messages }}")
    (dense / "added_tokens.json").write_text(json.dumps({"<mask>": core["<mask>"]}))
    result = prune_vocabulary(dense, list(sentences("latin", 40)), output=tmp_path / "small")
    lines = (tmp_path / "small" / "vocab.txt").read_text().splitlines()
    assert {token: i for i, token in enumerate(lines)} == result.tokenizer.get_vocab()
    assert result.report.left_out == ["spiece.model"]
    assert not (tmp_path / "small" / "spiece.model").exists()
    assert (tmp_path / "small" / "chat_template.jinja").read_text() == "{{ messages }}"
    added = json.loads((tmp_path / "small" / "added_tokens.json").read_text())
    assert added == {"<mask>": result.tokenizer.get_vocab()["<mask>"]}
    assert set(SPECIAL) <= set(lines)
