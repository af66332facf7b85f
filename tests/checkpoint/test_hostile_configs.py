"""Configs of every wrong kind, and configs that ask for unusual things that work: one line, or a model."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from badness import bad_input
from faster_pruner import prune, prune_model
from faster_pruner.checkpoint.opening import load, open_checkpoint
from faster_pruner.errors import CheckpointError, InputError, UnsupportedModelError
from faster_pruner.model.passes import inference

CPU = torch.device("cpu")
# What an answer may take, at most; the worst of these took minutes.
SECONDS = 2.0
# Text that must not be in a message, because only a person who knows transformers' inside understands it.
UNHELPFUL = ("Traceback", "\n", "NoneType' object", "not enough values")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return tiny.save_checkpoint(tmp_path_factory.mktemp("hostile") / "dense")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> Path:
    """Change values of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def refused(place: Any, what: str, message: str = "") -> str:
    """Open something that is to be refused in one line, quickly."""
    bad_input(what)
    start = time.perf_counter()
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        open_checkpoint(place, device=CPU)
    assert time.perf_counter() - start < SECONDS
    said = str(caught.value)
    assert message in said
    assert len(said) < 500
    assert not [text for text in UNHELPFUL if text in said]
    return said


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


FIELDS = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
NO_NUMBERS: tuple[Any, ...] = ("32", "", 32.0, None, True, [32], {"a": 1}, math.nan, math.inf, nested(50), 0, -1)
TOO_LARGE = (10**7, 10**12, 10**30)


@pytest.mark.parametrize("value", [*NO_NUMBERS, *TOO_LARGE], ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("field", FIELDS)
def test_sizes_that_are_no_sizes(field: str, value: object, folder: Path) -> None:
    said = refused(edit(folder, **{field: value}), f"{field}: {value}")
    assert field in said or "hidden size" in said or "attention heads" in said or "token_type_embeddings" in said


OTHERS: list[tuple[dict[str, Any], str]] = [
    *(({"hidden_act": value}, "hidden_act") for value in (3, None, ["gelu"], {})),
    ({"hidden_act": "nope"}, "it names 'nope'"),
    *(({"dtype": value}, "dtype is") for value in ("float31", "int8", 7, [], {}, "torch.nope", "complex64", "os")),
    *(({"torch_dtype": value}, "dtype is") for value in ("float31", 7, [])),
    *(({"num_labels": value}, "num_labels is") for value in ("x", -1, 0, 10**9, 10**30, None, 2.0, True, [2])),
    *(({"id2label": value}, "id2label is") for value in (3, "ab", ["a"], {}, True)),
    ({"id2label": {"x": 1}}, "not usable"),
    (
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        "classifier.bias is [2] in the file, but [3] by config.json: the one",
    ),
    ({"num_labels": 5}, 'has 2 labels, the other 5; let config.json say "num_labels": 2'),
    *(({"chunk_size_feed_forward": value}, "chunk_size_feed_forward is") for value in ("x", 1.5, None, [1])),
    *(({"pad_token_id": value}, "not usable") for value in ("x", 10**6, 1.5, [0])),
    *(({"hidden_dropout_prob": value}, "not usable") for value in ("x", None, 5, -1)),
    *(({"layer_norm_eps": value}, "not usable") for value in ("x", None, [1])),
    *(({"model_type": value}, "not supported") for value in (None, 3, [], {"a": 1}, "", "bertt", "../bert")),
    ({"model_type": "t5"}, "is not usable"),
    *(({"architectures": value}, "architecture") for value in ([], None, 3, {"a": 1}, [None], ["__init__"], [[]])),
    *(
        ({"quantization_config": {"quant_method": method}}, f"is quantised (quantization_config: '{method}'); deq")
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "torchao")
    ),
    *(({"quantization_config": value}, "is quantised") for value in (3, {}, [], "int8", {"quant_method": [1]})),
    ({"compression_config": {"a": 1}}, "is quantised"),
    ({"add_cross_attention": True}, "not usable"),
    ({"num_hidden_layers": 1}, "bert.encoder.layer.1.attention.output.LayerNorm.bias"),
    ({"num_hidden_layers": 3}, "lacks weights for bert.encoder.layer.2.attention"),
    ({"architectures": ["BertModel"]}, "no place for: classifier.bias, classifier.weight; give the config.json"),
    ({"architectures": ["BertForMaskedLM"]}, "lacks weights for cls.predictions.bias"),
    ({"architectures": ["BertForMultipleChoice"]}, "classifier.bias is [2] in the file, but [1] by config.json"),
    ({"architectures": ["BertForQuestionAnswering"]}, "lacks weights for qa_outputs.bias, qa_outputs.weight"),
    ({"intermediate_size": 39}, "intermediate.dense.bias is [40] in the file, but [39] by config.json (and"),
    ({"vocab_size": 93}, "word_embeddings.weight is [94, 24] in the file, but [93, 24] by config.json"),
]


@pytest.mark.parametrize(("changes", "message"), OTHERS, ids=lambda value: str(value)[:40])
def test_other_nonsense(changes: dict[str, Any], message: str, folder: Path) -> None:
    refused(edit(folder, **changes), str(changes), message)


HARMLESS: list[dict[str, Any]] = [
    {"output_attentions": True},
    {"output_hidden_states": True},
    {"return_dict": False},
    {"use_return_dict": False},
    {"return_dict": False, "output_attentions": True, "output_hidden_states": True},
    {"torchscript": True},
    {"gradient_checkpointing": True},
    {"attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "flash_attention_2"},
    {"chunk_size_feed_forward": 3},
    {"dtype": None},
]


@pytest.mark.parametrize("changes", HARMLESS, ids=str)
def test_what_a_config_may_ask_for_changes_nothing(changes: dict[str, Any], saved: Path, folder: Path) -> None:
    rows = tiny.make_batches(tiny.make_rows(24))
    batches: list[dict[str, Any]] = [{**batch.inputs, "labels": batch.labels} for batch in rows]
    dense: Any = load(saved)
    asked: Any = load(edit(folder, **changes))
    for own in (dense, asked):
        own.set_attn_implementation("eager")
    before = {key: getattr(asked.config, key) for key in ("return_dict", "output_attentions", "output_hidden_states")}
    with inference(dense), inference(asked):
        expected, found = (model(**rows[0].inputs) for model in (dense, asked))
    # hidden states that are asked for are kept: an objective of one's own may read them
    assert set(found) - {"hidden_states"} == set(expected) == {"logits"}
    torch.testing.assert_close(found.logits, expected.logits)
    plain, other = (prune_model(model, batches, macs=0.5) for model in (dense, asked))
    other.save(folder.parent / "pruned")
    for key, value in other.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[key])
    # what the config asks for is still asked for, here and in what is saved
    config = json.loads((folder.parent / "pruned" / "config.json").read_text())
    for key, value in before.items():
        assert getattr(asked.config, key) == value
        assert config.get(key, value) == value


CONFIG_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "cut short": (b'{"model_type": "bert"', "is not JSON"),
    "not JSON": (b"model_type: bert", "is not JSON"),
    "not UTF-8": (b'{"model_type": "\xff\xfe"}', "is not UTF-8"),
    "UTF-16": ('{"model_type": "bert"}'.encode("utf-16"), "no readable config.json"),
    "a list": (b'["bert"]', "holds a list"),
    "a text": (b'"bert"', "holds a str"),
    "a number": (b"3", "holds a int"),
    "null": (b"null", "holds a NoneType"),
    "an empty object": (b"{}", "says nothing"),
    "nested deeply": (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested too deeply"),
    "a number of many digits": (b'{"vocab_size": ' + b"9" * 10**5 + b"}", "is not JSON"),
    "a binary": (bytes(range(256)), "no readable config.json"),
    "11 MB": (b'{"a": "' + b"x" * (11 << 20) + b'"}', "more than 10 MB"),
}


@pytest.mark.parametrize("kind", CONFIG_FILES)
def test_files_that_are_no_config(kind: str, folder: Path) -> None:
    content, message = CONFIG_FILES[kind]
    (folder / "config.json").write_bytes(content)
    refused(folder, f"config.json: {kind}", message)


@pytest.mark.parametrize("kind", ["directory", "loop", "dangling", "absent"])
def test_a_config_that_is_no_file(kind: str, folder: Path) -> None:
    file = folder / "config.json"
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "dangling":
        file.symlink_to(folder / "nowhere")
    refused(folder, f"config.json: {kind}", "has no config.json")


@pytest.mark.parametrize("beside", [True, False])
def test_adapters(beside: bool, folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    if not beside:
        (folder / "config.json").unlink()
    refused(folder, f"an adapter, config beside it: {beside}", "merge it into its base model first")


def test_a_tokenizer_with_more_tokens_than_embeddings(folder: Path) -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(["more", "words"])
    tokenizer.save_pretrained(folder)
    refused(folder, "a long tokenizer", "the tokenizer has 96 tokens, but the model has embeddings for 94")


PLACES: list[tuple[Any, str]] = [
    ("", "'' arrived where"),
    ("  ", "arrived where"),
    ("a\0b", "arrived where"),
    (None, "a NoneType arrived"),
    (3, "a int arrived"),
    (b"x", "arrived where"),
    (["x"], "a list arrived"),
    ("no-such-model", "no folder 'no-such-model' here, and the hub is not asked (HF_HUB_OFFLINE is set)"),
    ("nobody/no-such-model", "no folder 'nobody/no-such-model' here, and the hub is not asked"),
    ("spaces in it", "no folder 'spaces in it' here, and it is no name that the hub could have"),
    ("a/b/c", "does not exist"),
    ("/nowhere", "does not exist"),
    ("./nowhere", "does not exist"),
    ("~/nowhere/at/all", "does not exist"),
    ("x" * 5000, "cannot be read"),
    (os.devnull, "does not exist or is not a folder"),
]


@pytest.mark.parametrize(("place", "message"), PLACES, ids=lambda value: str(value)[:30])
def test_places(place: Any, message: str) -> None:
    refused(place, f"place {str(place)[:40]!r}", message)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(404, "the hub has no such model"), (OSError("no route"), "the hub cannot be reached (OSError)")],
)
def test_the_hub_is_asked_once(answer: int | Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from faster_pruner.checkpoint import screening

    asked: list[str] = []

    class Session:
        status_code = answer

        def head(self, url: str, timeout: float) -> Session:
            asked.append(url)
            assert timeout <= 5
            if isinstance(answer, Exception):
                raise answer
            return self

    monkeypatch.setattr(screening.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(screening, "get_session", Session)
    refused("nobody/none", f"hub says {answer}", f"there is no folder 'nobody/none' here, and {message}")
    assert len(asked) == 1


def test_models_and_places_mixed_up() -> None:
    given: Any = tiny.make_model()
    for attempt in (lambda: prune(given, "sst2", macs=0.5), lambda: load(given)):
        bad_input("a model where a path belongs")
        with pytest.raises(CheckpointError, match=r"a BertForSequenceClassification arrived .* prune_model"):
            attempt()
    for place in ("folder", Path("folder"), None, 3):
        bad_input(f"{place!r} where a model belongs")
        model: Any = place
        with pytest.raises(InputError, match="arrived where a model in memory belongs"):
            prune_model(model, [])
