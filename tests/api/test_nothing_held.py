"""Nothing of a run is held once it is over: what many runs of one process leave behind is counted, object by object."""

from __future__ import annotations

import gc
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from greenlet import greenlet
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import tiny
from faster_pruner import Budget, CalibrationOptions, Data, Output, cut_again, prune, prune_model
from faster_pruner.errors import NumericalError
from faster_pruner.method import recovery, statistics
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.objectives import parts
from faster_pruner.options import PRESETS

pytestmark = [pytest.mark.usefixtures("quick_latency", "own_temporary"), pytest.mark.filterwarnings("ignore")]

SMALL = CalibrationOptions(rows=32, tokens_per_batch=64, precision="float32")
# What holds memory, whoever made it.
_KINDS = (torch.Tensor, torch.UntypedStorage, nn.Module, greenlet)
_OURS = "faster_pruner"


def _name(each: object) -> str:
    """What a living object is counted as; empty for what holds nothing of a run."""
    kind = type(each)
    if isinstance(each, FunctionType):
        # hooks, which hold what they look at
        return f"closure {each.__qualname__}" if each.__closure__ and str(each.__module__).startswith(_OURS) else ""
    ours = str(getattr(kind, "__module__", "")).startswith(_OURS)
    return kind.__qualname__ if ours or issubclass(kind, _KINDS) else ""


def _alive() -> Counter[str]:
    """Living objects, by name."""
    gc.collect()
    names = (_name(each) for each in gc.get_objects())
    return Counter(name for name in names if name)


class Place:
    """What runs work on."""

    def __init__(self, checkpoint: Path, data: Path, folder: Path) -> None:
        self.checkpoint, self.data, self.folder = checkpoint, data, folder
        self.llama = _llama()
        self.subject = tiny.make_subject(tiny.make_model())
        self.calibrated = calibrate(self.subject, tiny.make_rows(24), PRESETS["default"], SMALL)

    def prune(self, macs: float = 0.5, *, options: CalibrationOptions = SMALL, **changes: Any) -> None:
        """A whole run, of which nothing is kept."""
        output = changes.pop("output", Output(folder=self.folder / "out", overwrite=True))
        data = Data(task="sst2", folder=self.data)
        prune(self.checkpoint, data, macs=macs, output=output, calibration=options, **changes)

    def keep_and_cut(self) -> None:
        """Statistics that are kept, and a cut from them."""
        kept = self.folder / "kept"
        self.prune(output=Output(statistics=kept))
        cut_again(kept, macs=0.4, output=Output(folder=self.folder / "again", overwrite=True))
        shutil.rmtree(kept)

    def in_memory(self) -> None:
        """Somebody's own model, whose predictions are made in parts."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, tiny.VOCABULARY, (6, 4, 12), generator=generator)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "MOST_VALUES", 8 * tiny.VOCABULARY)
            prune_model(self.llama, [{"input_ids": each} for each in ids], macs=0.5, calibration=SMALL)

    def cut(self) -> None:
        """A further budget of one calibration."""
        cut(self.calibrated, Budget(macs=0.4), PRESETS["default"])

    def failing(self, module: Any, name: str, calls: int) -> None:
        """A run that fails when a function is called for the n-th time."""
        original, seen = getattr(module, name), [0]

        def failing(*given: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == calls:
                raise NumericalError("these rows are on fire")
            return original(*given, **options)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(NumericalError, match="on fire"):
            patch.setattr(module, name, failing)
            self.prune(options=replace(SMALL, memory_limit=2000))


def _llama() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tiny.VOCABULARY, **sizes, **heads)).eval()


RUNS: dict[str, Callable[[Place], None]] = {
    "default": lambda place: place.prune(),
    "a teacher": lambda place: place.prune(method="kwon2022"),
    "two rounds and a descent": lambda place: place.prune(0.2),
    "hidden states in files": lambda place: place.prune(options=replace(SMALL, memory_limit=0)),
    "statistics that are kept": Place.keep_and_cut,
    "a model in memory": Place.in_memory,
    "further budgets": Place.cut,
    "fails in the pass": lambda place: place.failing(statistics, "_check_finite", 2),
    "fails in the recovery": lambda place: place.failing(recovery, "_gather", 3),
}


@pytest.fixture(scope="module")
def place(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(checkpoint, data, tmp_path_factory.mktemp("held"))


@pytest.mark.parametrize("name", RUNS)
def test_many_runs_leave_nothing_behind(name: str, place: Place) -> None:
    run = RUNS[name]
    # what is imported, looked up or measured once stays
    run(place)
    before = _alive()
    for _ in range(3):
        run(place)
    after = _alive()
    assert after - before == Counter()
    assert before - after == Counter()


def test_what_is_held_is_counted(place: Place) -> None:
    """The counting sees a model, its weights, and a hook on somebody's own."""
    before = _alive()
    held = tiny.make_model()
    grown = _alive() - before
    assert grown["Parameter"] == len([*held.parameters()])
    assert grown["Linear"] == len([m for m in held.modules() if type(m) is nn.Linear])
    from faster_pruner.model.passes import masked_by

    handle = place.llama.register_forward_pre_hook(masked_by(torch.ones(32)))
    assert (_alive() - before)["closure masked_by.<locals>.masked"] == 1
    handle.remove()
    assert (_alive() - before)["closure masked_by.<locals>.masked"] == 0
