"""Tokens and units in one run, of folders of sentence-transformers: what they say beside their model goes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from corpora import SIZES, fast, files_of, pruned, save, sentences
from faster_pruner import Data, Vocabulary, prune_vocabulary

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency", "own_temporary")]

_SIZES = {**SIZES, "vocab_size": len(fast("WordPiece"))}


def test_a_folder_of_sentence_transformers(tmp_path: Path) -> None:
    """Pooling, a Dense layer and prompts go along; the tokens of a prompt stay, though no text has them."""
    package: Any = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    prompt = sentences("cyrillic")[0].split()[0] + ": "
    save(tmp_path / "encoder", AutoModel.from_config(BertConfig(**_SIZES)).eval(), "WordPiece")
    layers = [modules.Transformer(str(tmp_path / "encoder")), modules.Pooling(24, "mean"), modules.Dense(24, 16)]
    whole = package.SentenceTransformer(modules=layers, device="cpu", prompts={"q": prompt}, default_prompt_name="q")
    whole.save_pretrained(str(tmp_path / "st"))
    texts = list(sentences("latin"))
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    result = pruned(
        tmp_path / "st", Data(file=tmp_path / "texts.txt"), macs=0.8, output=tmp_path / "out", vocabulary=texts
    )
    assert result.report.before["validation"].metrics["cosine"] == pytest.approx(100.0)
    assert [w for w in result.report.warnings if "could not" in w] == []
    opened = package.SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    assert opened.default_prompt_name == "q"
    new, old = result.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "encoder")
    assert new.tokenize(prompt) == old.tokenize(prompt)
    # an encoder without a head of its own gets the one that is asked for
    pooled = pruned(
        tmp_path / "encoder",
        Data(file=tmp_path / "texts.txt", pooling="cls"),
        macs=0.8,
        output=tmp_path / "pooled",
        vocabulary=texts,
    )
    assert package.SentenceTransformer(str(tmp_path / "pooled"), device="cpu").encode(texts[:2]).shape == (2, 24)
    assert pooled.report.before["validation"].metrics["cosine"] == pytest.approx(100.0)


def test_a_reranker(tmp_path: Path) -> None:
    """What a folder of CrossEncoder says beside its model goes along."""
    package: Any = pytest.importorskip("sentence_transformers")
    config = BertConfig(**_SIZES, num_labels=1)
    save(tmp_path / "plain", AutoModelForSequenceClassification.from_config(config).eval(), "WordPiece")
    whole = package.CrossEncoder(
        str(tmp_path / "plain"), device="cpu", activation_fn=torch.nn.Identity(), max_length=30, prompts={"q": "ста: "}
    )
    whole.save_pretrained(str(tmp_path / "dense"))
    texts = list(sentences("latin"))
    lines = [{"query": text.split()[0], "text": text} for text in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = Data(file=tmp_path / "pairs.jsonl")
    wanted = Vocabulary(texts=texts, held_out=0)
    result = pruned(tmp_path / "dense", rows, macs=0.8, output=tmp_path / "both", vocabulary=wanted)
    prune_vocabulary(tmp_path / "dense", texts, output=tmp_path / "tokens", held_out=0)
    pruned(tmp_path / "tokens", rows, macs=0.8, output=tmp_path / "after")
    assert files_of(tmp_path / "both") == files_of(tmp_path / "after")
    assert result.report.before["validation"].metrics["dense_spearman"] == pytest.approx(100.0)
    opened = package.CrossEncoder(str(tmp_path / "both"), device="cpu", trust_remote_code=True)
    assert (opened.max_length, type(opened.activation_fn).__name__) == (30, "Identity")
    inputs = result.tokenizer("ba", texts[0], return_tensors="pt")
    with torch.no_grad():
        expected = result.model.cpu()(**inputs).logits[0, 0].item()
    assert opened.predict([("ba", texts[0])])[0] == pytest.approx(expected, abs=1e-5)
