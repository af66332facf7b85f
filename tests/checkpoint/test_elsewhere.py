"""A pruned folder where faster-pruner is not imported: opened right or refused loudly, also once it was saved again."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import cases
import tiny
from cases import Case, logits_of
from faster_pruner.checkpoint.opening import load
from faster_pruner.checkpoint.remote import MODULE
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.model import shrink
from faster_pruner.model.spec import resolve
from faster_pruner.model.table import FAMILIES

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]]),
}
WAYS = {"plain": {}, "ignoring": {"ignore_mismatched_sizes": True}, "trusting": {"trust_remote_code": True}}

# Opens every folder in argv in every way without faster-pruner and writes what happened beside it. What was opened with
# the folder's own code is saved again, and that folder is opened in every way, too.
_CHILD = """
import json, sys, torch, transformers
from safetensors.torch import save_file
auto = transformers.AutoModelForSequenceClassification
inputs = {key: torch.tensor(value) for key, value in json.loads(sys.argv[1]).items()}
folders = sys.argv[3:]
for folder in folders:
    said = {}
    for name, options in json.loads(sys.argv[2]).items():
        try:
            model = auto.from_pretrained(folder, **options).eval()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
            continue
        with torch.no_grad():
            save_file({"logits": model(**inputs).logits}, f"{folder}/{name}.safetensors.out")
        said[name] = "opened"
        if name == "trusting" and not folder.endswith("-again"):
            model.save_pretrained(folder + "-again")
            folders.append(folder + "-again")
    open(f"{folder}/said.json", "w").write(json.dumps(said))
assert "faster_pruner" not in sys.modules
"""

ODD = {
    "layers.0.attention": torch.tensor([0, 2]),
    "layers.0.ffn": torch.arange(17),
    "layers.1.attention": torch.arange(0),
    "layers.1.ffn": torch.arange(0),
}
UNIFORM = {f"layers.{i}.ffn": torch.arange(3 * i, 17 + 3 * i) for i in range(2)}
# numbers of heads that the width does not divide by, the same everywhere
FIVE_OF_SIX = {f"layers.{i}.attention": torch.arange(1, 6) for i in range(2)}


@dataclass(frozen=True)
class Opened:
    """Where the folders are, and the logits of each."""

    place: Path
    logits: dict[str, torch.Tensor]

    def said(self, name: str) -> dict[str, str]:
        """What happened, by way of opening."""
        return json.loads((self.place / name / "said.json").read_text())

    def equal(self, name: str, way: str, of: str) -> bool:
        """Whether what was opened gives the logits of the folder `of`."""
        found = load_file(self.place / name / f"{way}.safetensors.out")["logits"]
        return torch.allclose(found, self.logits[of], atol=1e-6)


def make(family: str, kind: str) -> Case:
    """A pruned model."""
    heads = {"n_heads" if family == "distilbert" else "num_attention_heads": 6} if kind == "five" else {}
    model = tiny.make_model(family, **heads)
    case = Case(model, FAMILIES[family], resolve(model, FAMILIES[family]), {})
    return case.shrunk(cases.everything(case.sublayers) | {"odd": ODD, "uniform": UNIFORM, "five": FIVE_OF_SIX}[kind])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Pruned folders of every row of the table, and what another process made of them."""
    place, logits = tmp_path_factory.mktemp("elsewhere"), dict[str, torch.Tensor]()
    for family in FAMILIES:
        for kind in ("odd", "uniform", "five"):
            name = f"{family}-{kind}"
            logits[name] = logits_of(load(cases.save(make(family, kind), place / name)), INPUTS)
        # saved again by transformers: opened by us, and by an auto class
        odd = place / f"{family}-odd"
        load(odd).save_pretrained(place / f"{family}-loaded")
        transformers.AutoModelForSequenceClassification.from_pretrained(odd).save_pretrained(place / f"{family}-auto")
        load(place / f"{family}-loaded").save_pretrained(place / f"{family}-twice")
    folders = [str(folder) for folder in sorted(place.iterdir())]
    inputs = json.dumps({key: value.tolist() for key, value in INPUTS.items()})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules")}
    command = [sys.executable, "-c", _CHILD, inputs, json.dumps(WAYS), *folders]
    done = subprocess.run(command, check=False, capture_output=True, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    return Opened(place, logits)


@pytest.mark.parametrize("kind", ["odd", "five"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_its_own_code_opens_it_and_nothing_else_does(family: str, kind: str, opened: Opened) -> None:
    name = f"{family}-{kind}"
    said = opened.said(name)
    # never opened with layers that were initialised anew
    assert "per-layer attribute" in said["plain"]
    assert "per-layer attribute" in said["ignoring"]
    assert said["trusting"] == "opened"
    assert opened.equal(name, "trusting", name)
    # what opens it is the very code that shrinks it here
    assert (opened.place / name / f"{MODULE}.py").read_text().startswith(inspect.getsource(shrink))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_stock_sizes_open_with_plain_transformers(family: str, opened: Opened) -> None:
    name = f"{family}-uniform"
    assert opened.said(name) == dict.fromkeys(WAYS, "opened")
    assert all(opened.equal(name, way, name) for way in WAYS)
    assert not (opened.place / name / f"{MODULE}.py").exists()


@pytest.mark.parametrize("how", ["loaded", "twice", "auto", "odd-again", "five-again"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_saved_again_by_transformers_it_keeps_its_sizes(family: str, how: str, opened: Opened) -> None:
    name, of = f"{family}-{how}", f"{family}-five" if how.startswith("five") else f"{family}-odd"
    said = opened.said(name)
    assert "per-layer attribute" in said["plain"]
    assert "per-layer attribute" in said["ignoring"]
    assert said["trusting"] != "opened" or opened.equal(name, "trusting", of)
    # it takes its code along where it was opened with it
    assert (said["trusting"] == "opened") == how.endswith("-again")
    again = load(opened.place / name)
    assert [s.units for s in sublayers_of(again)] == [s.units for s in sublayers_of(load(opened.place / of))]
    assert torch.equal(logits_of(again, INPUTS), opened.logits[of])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_stock_sizes_saved_again_are_still_stock(family: str, opened: Opened) -> None:
    name = f"{family}-uniform-again"
    assert opened.said(name) == dict.fromkeys(WAYS, "opened")
    assert all(opened.equal(name, way, f"{family}-uniform") for way in WAYS)
    assert torch.equal(logits_of(load(opened.place / name), INPUTS), opened.logits[f"{family}-uniform"])
