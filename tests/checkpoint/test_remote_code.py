"""The generated file, for every row of the table and every made-up family: run as Python, it builds the same sizes."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import cases
import tiny
from cases import inputs_of, logits_of
from faster_pruner.checkpoint.remote import remote_code
from faster_pruner.checkpoint.sizes import mark_as_pruned, without_layer_sizes
from faster_pruner.model import shrink
from made_up import MADE_UP


def run(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generated file as a module."""
    file = place / "generated_for_a_test.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", cases.NAMES)
def test_it_is_the_shrinking_code_and_literals(name: str) -> None:
    code = remote_code("AnyClass", cases.make(name).sublayers)
    own = inspect.getsource(shrink)
    assert code.startswith(own)
    about_configs, generated = code[len(own) :].split("\n\n\n# What follows was generated", 1)
    assert about_configs.strip() == inspect.getsource(without_layer_sizes).strip()
    tail = ast.parse("# What follows was generated" + generated)
    assert [ast.unparse(node) for node in tail.body[:1]] == ["import transformers"]
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(own))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        str(node.module).split(".")[0] for node in ast.walk(ast.parse(own)) if isinstance(node, ast.ImportFrom)
    }
    assert imported <= {"copy", "inspect", "collections", "dataclasses", "functools", "typing", "torch"}


@pytest.mark.parametrize("size", ["uneven", "least"])
@pytest.mark.parametrize("name", sorted(MADE_UP))
def test_made_up_families(name: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, build = cases.make(name), MADE_UP[name].build
    everything = {s.name for s in case.sublayers}
    selection = cases.uneven(case.sublayers) if size == "uneven" else cases.emptied(case.sublayers, everything)
    smaller = case.shrunk(selection)
    options: dict[str, Any] = getattr(build, "keywords", {})

    class Stock(type(case.model)):
        def __init__(self, config: Any) -> None:
            super().__init__(config, **options)

    # transformers puts another module in its own place when some of it is first used
    monkeypatch.setitem(vars(sys.modules["transformers"]), "Stock", Stock)
    generated = run(remote_code("Stock", case.sublayers), tmp_path, monkeypatch)
    config = SimpleNamespace(faster_pruner={"format": 2, "sizes": {s.name: s.units for s in smaller.sublayers}})
    model = generated.Stock(config).eval()
    model.load_state_dict(smaller.model.state_dict())
    assert torch.equal(logits_of(model, inputs_of(name)), logits_of(smaller.model, inputs_of(name)))
    config.faster_pruner["sizes"][case.sublayers[-1].name] = 10**12
    with pytest.raises(ValueError, match="cannot have 1000000000000 units"):
        generated.Stock(config)


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_rows_of_the_table(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.make(family)
    smaller = case.shrunk(cases.uneven(case.sublayers) | {"layers.1.attention": torch.arange(0)})
    mark_as_pruned(smaller.model, smaller.sublayers)
    generated = run(remote_code(type(case.model).__name__, case.sublayers), tmp_path, monkeypatch)
    opened = getattr(generated, type(case.model).__name__)
    # what transformers hands the class: a config that it refuses to build the stock class from
    config = type(smaller.model.config).from_dict(smaller.model.config.to_dict())
    with pytest.raises(Exception, match="per-layer attribute"):
        type(case.model)(config)
    model = opened(config).eval()
    model.load_state_dict(smaller.model.state_dict())
    model.set_attn_implementation("eager")
    assert torch.equal(logits_of(model, inputs_of(family)), logits_of(smaller.model, inputs_of(family)))
