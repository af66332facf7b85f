"""Hostile and damaged checkpoints are one clear error; nothing in a config becomes a path or code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cases
import tiny
from cases import inputs_of, logits_of
from faster_pruner.checkpoint.opening import load, open_checkpoint
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.errors import CheckpointError, UnsupportedModelError

CPU = torch.device("cpu")
SIZES = {"layers.0.attention": 2, "layers.0.ffn": 17, "layers.1.attention": 3, "layers.1.ffn": 9}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pruned checkpoint with different sizes in every layer."""
    case = cases.make("bert")
    smaller = case.shrunk({name: torch.arange(units) for name, units in SIZES.items()})
    return cases.save(smaller, tmp_path_factory.mktemp("opening") / "pruned")


@pytest.fixture
def pruned(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "pruned"))


def edit(folder: Path, **changes: Any) -> Path:
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def metadata(**changes: Any) -> dict[str, Any]:
    """As the checkpoint has it, with some sizes changed."""
    return {"format": 2, "sizes": {**SIZES, **{key.replace("_", "."): value for key, value in changes.items()}}}


def first_format(**changes: Any) -> dict[str, Any]:
    """As faster-pruner 0.1 wrote it."""
    layers = {str(i): {"num_attention_heads": 2 + i, "intermediate_size": 17 - 8 * i} for i in range(2)}
    layers["0"].update(changes)
    return {"format": 1, "per_layer_config": layers}


def test_load_gives_the_stock_class_with_smaller_linears(pruned: Path) -> None:
    model = load(pruned)
    assert type(model) is transformers.BertForSequenceClassification
    assert {s.name: s.units for s in sublayers_of(model)} == SIZES
    assert model.bert.encoder.layer[0].attention.self.query.out_features == 16
    assert model.bert.encoder.layer[1].output.dense.in_features == 9
    assert not model.training


FIELDS = {"bert": ("num_attention_heads", "intermediate_size"), "distilbert": ("n_heads", "hidden_dim")}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_checkpoints_of_the_first_format_still_open(family: str, tmp_path: Path) -> None:
    heads, neurons = FIELDS.get(family, FIELDS["bert"])
    case = cases.make(family)
    smaller = case.shrunk({name: torch.arange(units) for name, units in SIZES.items()})
    folder = cases.save(smaller, tmp_path / "old")
    layers = {"0": {heads: 2, neurons: 17}, "1": {heads: 3, neurons: 9}}
    edit(folder, faster_pruner={"format": 1, "per_layer_config": layers}, per_layer_config=layers)
    for model in (load(folder), transformers.AutoModelForSequenceClassification.from_pretrained(folder)):
        assert {s.name: s.units for s in sublayers_of(model)} == SIZES
        model.set_attn_implementation("eager")
        assert torch.equal(logits_of(model, inputs_of(family)), logits_of(smaller.model, inputs_of(family)))
    load(folder).save_pretrained(tmp_path / "again")
    assert {s.name: s.units for s in sublayers_of(load(tmp_path / "again"))} == SIZES
    # a layer that was whole was not always written down
    del layers["1"][heads]
    edit(folder, faster_pruner={"format": 1, "per_layer_config": layers})
    assert {s.name: s.units for s in sublayers_of(load(folder))} == SIZES


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"faster_pruner": {"format": 99, "sizes": SIZES}}, "format 99; known are 1 and 2"),
    ({"faster_pruner": {"format": True, "per_layer_config": {}}}, "format True"),
    ({"faster_pruner": {"format": 2.0, "sizes": SIZES}}, "format 2.0"),
    ({"faster_pruner": {"format": "2", "sizes": SIZES}}, "format 2; known"),
    ({"faster_pruner": {"format": "x" * 10**6}}, "format xxx"),
    ({"faster_pruner": {"format": [2]}}, "format [2]"),
    ({"faster_pruner": {}}, "format None"),
    ({"faster_pruner": "yes"}, "format None"),
    ({"faster_pruner": [1]}, "format None"),
    ({"faster_pruner": 2}, "format None"),
    ({"faster_pruner": {"format": 2}}, "not a mapping"),
    ({"faster_pruner": {"format": 2, "sizes": [3, 40]}}, "not a mapping"),
    ({"faster_pruner": {"format": 2, "sizes": "layers.0.ffn"}}, "not a mapping"),
    ({"faster_pruner": metadata(layers_7_ffn=3)}, "'layers.7.ffn' is not one of the 4 sublayers"),
    ({"faster_pruner": {"format": 2, "sizes": {"../x": 1}}}, "'../x' is not one of"),
    ({"faster_pruner": {"format": 2, "sizes": {"/etc/passwd" * 1000: 1}}}, "is not one of"),
    ({"faster_pruner": {"format": 2, "sizes": {"": 1}}}, "'' is not one of"),
    ({"faster_pruner": metadata(layers_0_ffn=10**12)}, "cannot have 1000000000000 units: it has 0 to 40"),
    ({"faster_pruner": metadata(layers_0_ffn=41)}, "cannot have 41 units"),
    ({"faster_pruner": metadata(layers_0_ffn=-1)}, "cannot have -1 units"),
    ({"faster_pruner": metadata(layers_0_ffn=True)}, "cannot have True units"),
    ({"faster_pruner": metadata(layers_0_ffn=17.0)}, "cannot have 17.0 units"),
    ({"faster_pruner": metadata(layers_0_ffn="17")}, "cannot have 17 units"),
    ({"faster_pruner": metadata(layers_0_ffn=None)}, "cannot have None units"),
    ({"faster_pruner": metadata(layers_0_ffn=[17] * 10**5)}, "cannot have [17, 17"),
    ({"faster_pruner": metadata(layers_0_ffn={"units": 17})}, "cannot have {'units'"),
    ({"faster_pruner": metadata(layers_0_ffn=18)}, "do not fit config.json"),
    ({"faster_pruner": {"format": 2, "sizes": {}}}, "do not fit config.json"),
    # the sizes are gone, but the tensors are what they are
    ({"faster_pruner": None, "per_layer_config": None}, "do not fit config.json"),
    ({"faster_pruner": None}, "do not fit config.json"),
    ({"faster_pruner": {"format": 1}}, "per_layer_config is not a mapping"),
    ({"faster_pruner": {"format": 1, "per_layer_config": {"0": 3}}}, "not a mapping"),
    ({"faster_pruner": {"format": 1, "per_layer_config": {"7": {"intermediate_size": 3}}}}, "'7 intermediate_size'"),
    ({"faster_pruner": {"format": 1, "per_layer_config": {"../x": {"y": 1}}}}, "'../x y' is not one of"),
    ({"faster_pruner": first_format(hidden_size=8)}, "'0 hidden_size' is not one of"),
    ({"faster_pruner": first_format(intermediate_size=10**12)}, "cannot have 1000000000000 units"),
    ({"faster_pruner": first_format(intermediate_size=-1)}, "cannot have -1 units"),
    ({"faster_pruner": first_format(intermediate_size=True)}, "cannot have True units"),
    ({"faster_pruner": first_format(intermediate_size="17")}, "cannot have 17 units"),
    ({"faster_pruner": first_format(intermediate_size=18)}, "do not fit config.json"),
    ({"architectures": ["os.system"]}, "os.system"),
    ({"architectures": ["BertTokenizer"]}, "BertTokenizer"),
    ({"architectures": "BertForSequenceClassification"}, "not a class that transformers has for bert"),
    ({"architectures": [["BertForSequenceClassification"]]}, "not a class that transformers has for bert"),
    ({"architectures": None}, "not a class that transformers has for bert"),
    ({"model_type": "../../bert"}, "not supported"),
    ({"model_type": None}, "not supported"),
    ({"num_attention_heads": 5}, "config.json is not usable"),
    ({"num_attention_heads": "x"}, "config.json is not usable"),
    ({"num_attention_heads": 0}, "config.json is not usable"),
    ({"intermediate_size": -5}, "config.json"),
    ({"hidden_act": "nope"}, "config.json is not usable"),
    ({"hidden_size": 23}, "config.json"),
    ({"vocab_size": -1}, "config.json"),
    ({"per_layer_config": 3}, "config.json"),
    ({"per_layer_config": {"9": {"intermediate_size": 3}}}, "config.json"),
    ({"per_layer_config": {"0": {"nope": 3}}}, "config.json"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_hostile_configs_are_one_clear_error(pruned: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        load(edit(pruned, **changes))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_damaged_checkpoints_are_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(checkpoint, tmp_path / name))

    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no folder 'nobody/no-such-model' here, and the hub is not asked"):
        load("nobody/no-such-model")
    with pytest.raises(CheckpointError, match="do not fit"):
        load(edit(copy("shapes"), intermediate_size=39))
    no_weights = copy("no-weights")
    (no_weights / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load(no_weights)
    (no_weights / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load(no_weights)
    broken = copy("broken-json")
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        load(broken)


def test_a_checkpoint_of_pickled_weights_is_never_read(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save(tiny.make_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load(folder)


def test_weights_that_are_missing_or_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[2, 2] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tiny.make_tokenizer().save_pretrained(tmp_path / "nan")
    with pytest.raises(CheckpointError, match=r"layer\.1\.output\.dense\.weight' has NaN"):
        open_checkpoint(str(tmp_path / "nan"), device=CPU)
    tiny.make_model().bert.save_pretrained(tmp_path / "headless")
    edit(tmp_path / "headless", architectures=["BertForSequenceClassification"])
    with pytest.raises(CheckpointError, match="lacks weights for"):
        load(tmp_path / "headless")
    tiny.make_model().save_pretrained(tmp_path / "no-tokenizer")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(str(tmp_path / "no-tokenizer"), device=CPU)
