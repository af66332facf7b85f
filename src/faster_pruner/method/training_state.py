"""What a training run has done so far, in one file: an interrupted run goes on where it was, to the same bits.

A safetensors file with the weights, the best ones, and both moments of AdamW; everything else is in its metadata. It is
written beside its place and moved there, so that it is whole at any time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from faster_pruner.host.folders import unfinished

_KEY = "state"
_WEIGHTS, _BEST, _FIRST, _SECOND = "weights", "best", "first", "second"


@dataclass(kw_only=True)
class Course:
    """How far a run has come.

    Attributes:
        rows: that it is trained on.
        step: steps taken.
        best_step: the one with the smallest loss on the held-out rows.
        best_loss: that loss.
        before: the loss before the first step.
        history: steps and the loss after them.
        status: "finished", or why it stopped; empty while it is running.
        note: why what it has done could not be kept; empty when it could.
    """

    rows: int
    before: float
    best_loss: float
    step: int = 0
    best_step: int = 0
    history: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    status: str = ""
    note: str = ""


@dataclass(frozen=True)
class StateFile:
    """Where a course is kept.

    Attributes:
        path: of the file.
        run: what tells this run from all others: only a file of the same run is read.
    """

    path: Path
    run: str

    def read_course(self) -> Course | None:
        """How far an earlier run has come; None where there is none that can be read, or it was another run."""
        try:
            with safe_open(self.path, framework="pt") as file:
                raw: dict[str, Any] = json.loads(file.metadata()[_KEY])
            if raw.pop("run") != self.run:
                return None
            history: Any = [(int(step), float(loss)) for step, loss in raw.pop("history")]
            return Course(**raw, history=history)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def read_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Put weights and moments back where they were; returns the best weights by name."""
        parameters = dict(model.named_parameters())
        best: dict[str, Tensor] = {}
        with safe_open(self.path, framework="pt") as file:
            there = set(file.keys())
            step = torch.tensor(float(json.loads(file.metadata()[_KEY])["step"]))
            for name, parameter in parameters.items():
                parameter.data.copy_(file.get_tensor(f"{_WEIGHTS}.{name}"))
                best[name] = file.get_tensor(f"{_BEST}.{name}").to(parameter.device)
                if f"{_FIRST}.{name}" in there:
                    moments = {
                        key: file.get_tensor(f"{part}.{name}").to(parameter.device) for part, key in _MOMENTS.items()
                    }
                    optimizer.state[parameter] = {"step": step.to(parameter.device, copy=True), **moments}
        return best

    def write(
        self, course: Course, model: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor]
    ) -> str:
        """Keep everything; returns why that did not work, empty when it did: the run itself goes on without."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            tensors[f"{_WEIGHTS}.{name}"] = parameter.detach().contiguous()
            tensors[f"{_BEST}.{name}"] = best[name].contiguous()
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{part}.{name}": state[key].contiguous() for part, key in _MOMENTS.items() if key in state}
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, metadata={_KEY: json.dumps({"run": self.run, **asdict(course)})})
            beside.replace(self.path)
            if self.path not in unfinished:
                unfinished.append(self.path)
        except (OSError, SafetensorError) as error:
            return f"cannot write {str(self.path)!r}: {error}"
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        return ""


# Parts of the file by the name that AdamW gives its moments.
_MOMENTS = {_FIRST: "exp_avg", _SECOND: "exp_avg_sq"}
