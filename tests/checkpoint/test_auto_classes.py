"""With faster-pruner imported, transformers' auto classes open pruned folders; the import changes nothing else."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import cases
from cases import Case, inputs_of, logits_of
from faster_pruner.checkpoint import auto
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.errors import CheckpointError
from faster_pruner.model.table import FAMILIES

AUTO = transformers.AutoModelForSequenceClassification
UNITS = [2, 17, 0, 0]


def odd(family: str) -> Case:
    """A pruned model with different sizes in every sublayer, two of them empty."""
    case = cases.make(family)
    return case.shrunk({s.name: torch.arange(units) for s, units in zip(case.sublayers, UNITS, strict=True)})


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"trust_remote_code": True}, {"device_map": "cpu"}])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_they_open_it_as_the_stock_class(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    case = odd(family)
    folder = cases.save(case, tmp_path / "odd")
    model = AUTO.from_pretrained(folder, attn_implementation="eager", **options)
    assert type(model) is type(case.model)
    assert [s.units for s in sublayers_of(model)] == UNITS
    assert not model.training
    assert torch.equal(logits_of(model, inputs_of(family)), logits_of(case.model, inputs_of(family)))


def test_they_give_what_the_stock_class_gives(tmp_path: Path) -> None:
    folder = cases.save(odd("bert"), tmp_path / "odd")
    model, info = AUTO.from_pretrained(folder, output_loading_info=True)
    assert type(model) is transformers.BertForSequenceClassification
    assert info["missing_keys"] == set()
    assert AUTO.from_pretrained(folder, dtype=torch.bfloat16).dtype is torch.bfloat16
    named = transformers.BertConfig.from_pretrained(folder)
    assert [s.units for s in sublayers_of(AUTO.from_pretrained(folder, config=named))] == UNITS
    # a model without its head, and one with new weights
    headless = transformers.AutoModel.from_pretrained(folder)
    assert type(headless) is transformers.BertModel
    assert [s.units for s in sublayers_of(headless)] == UNITS
    fresh = AUTO.from_config(named)
    assert type(fresh) is transformers.BertForSequenceClassification
    assert [s.units for s in sublayers_of(fresh)] == UNITS
    assert bool(logits_of(fresh, inputs_of("bert")).isfinite().all())
    answer = transformers.pipeline("text-classification", model=str(folder))("w1 w2")
    assert answer[0]["label"] in ("LABEL_0", "LABEL_1")


def test_the_class_itself_refuses_loudly(tmp_path: Path) -> None:
    folder = cases.save(odd("bert"), tmp_path / "odd")
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(Exception, match="per-layer attribute"):
            transformers.BertForSequenceClassification.from_pretrained(folder, **options)


def test_dense_models_pass_through_untouched(checkpoint: Path) -> None:
    auto.watch()
    model = AUTO.from_pretrained(checkpoint)
    assert type(model) is transformers.BertForSequenceClassification
    assert type(AUTO.from_config(model.config)) is transformers.BertForSequenceClassification
    assert type(transformers.AutoModel.from_pretrained(checkpoint)) is transformers.BertModel


def test_a_hostile_config_is_refused_by_them_too(tmp_path: Path) -> None:
    path = cases.save(odd("bert"), tmp_path / "odd") / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    for name, units in (("layers.0.ffn", 10**12), ("layers.9.ffn", 3)):
        changed = copy.deepcopy(config)
        changed["faster_pruner"]["sizes"][name] = units
        path.write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match="cannot have 1000000000000 units|not one of the 4 sublayers"):
            AUTO.from_pretrained(tmp_path / "odd")


def run(script: str, *arguments: str) -> list[str]:
    """Lines that a script prints in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


_LIGHT = """
import sys

def loaded(*names):
    print(*[name for name in sys.modules if name.startswith(names)])

def waiting():
    print(sum(type(finder).__module__.startswith("faster_pruner") for finder in sys.meta_path))

import faster_pruner
loaded("torch", "transformers", "datasets", "numpy", "scipy", "sklearn", "safetensors", "huggingface_hub", "rich")
waiting()
print("prune" in dir(faster_pruner), hasattr(faster_pruner, "nothing_like_it"))
faster_pruner.CalibrationOptions
loaded("torch", "transformers")
import transformers
faster_pruner.load
loaded("transformers.models.bert.modeling", "transformers.models.roberta.modeling")
tables = [auto._model_mapping for name, auto in vars(transformers.models.auto.modeling_auto).items()
          if name.startswith("AutoModel") and getattr(auto, "_model_mapping", None) is not None]
print(len(tables) > 20, sum(len(table._extra_content) for table in tables))
waiting()
"""


def test_the_import_is_light_and_registers_nothing() -> None:
    heavy, finders, names, cheap, models, registered, left = run(_LIGHT)
    # one finder waits for the auto classes, and goes when they have come
    assert (heavy, finders, left) == ("", "1", "0")
    assert names == "True False"
    assert (cheap, models) == ("", "")
    assert registered == "True 0"


_ORDERS = {
    "ours first": "import faster_pruner, transformers",
    "theirs used first": (
        "import sys, transformers\ntransformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[2])\n"
        "import faster_pruner"
    ),
}
_OPENS = """
import sys, torch, transformers
from safetensors.torch import save_file
auto = transformers.AutoModelForSequenceClassification
model = auto.from_pretrained(sys.argv[1], attn_implementation="eager")
dense = auto.from_pretrained(sys.argv[2])
print(type(model) is transformers.BertForSequenceClassification, type(dense) is type(model))
with torch.no_grad():
    save_file({"logits": model(torch.tensor([[2, 5, 9, 3]])).logits}, sys.argv[3])
"""


@pytest.mark.parametrize("order", _ORDERS)
def test_either_may_be_imported_first(order: str, checkpoint: Path, tmp_path: Path) -> None:
    case = odd("bert")
    folder = cases.save(case, tmp_path / "odd")
    answer = tmp_path / "logits.out"
    assert run(f"{_ORDERS[order]}\n{_OPENS}", str(folder), str(checkpoint), str(answer)) == ["True True"]
    expected = logits_of(case.model, {"input_ids": torch.tensor([[2, 5, 9, 3]])})
    assert torch.allclose(load_file(answer)["logits"], expected, atol=1e-6)


def test_watching_twice_wraps_once() -> None:
    factory = sys.modules["transformers.models.auto.auto_factory"]
    wrapped = factory._get_model_class
    auto.watch()
    auto.watch()
    assert factory._get_model_class is wrapped
    assert not hasattr(wrapped.__wrapped__, "__wrapped__")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_config_alone_gives_a_new_model_of_its_sizes(family: str, tmp_path: Path) -> None:
    case = odd(family)
    folder = cases.save(case, tmp_path / "pruned")
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in case.model.state_dict().items()
    }
    bare = transformers.AutoModel.from_config(config)
    assert {s.name: s.units for s in sublayers_of(bare)} == {s.name: s.units for s in case.sublayers}
