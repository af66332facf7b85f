"""Which of transformers' models can be pruned: every model type under every auto class, tiny, and the whole contract.

For each one half of the MACs goes, through the public API: its sublayers are found and proved, every pass over it is
tried, it is pruned, saved, and opened again in all ways (`load`, the auto class, the folder's own code, and plain
transformers, which must open what needs nothing else and refuse the rest).

python benchmarks/coverage.py run OUT.json [--auto NAME ...] [--types a,b] [--part i/n] [--seconds 40]
python benchmarks/coverage.py write ONE.json [MORE.json ...]     -> benchmarks/results/coverage.json, docs/coverage.md
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import auto_factory

import faster_pruner
from coverage_page import write_page
from faster_pruner import Objective, Predictions, prune_model
from faster_pruner.api import outcome
from faster_pruner.data.batches import Batch
from faster_pruner.errors import BudgetError, FasterPrunerError
from faster_pruner.model.describe import describe
from faster_pruner.model.detection.watching import rows_of
from faster_pruner.model.gradients import gradients
from faster_pruner.model.lockstep import lockstep
from faster_pruner.model.passes import inference, tensors_in
from faster_pruner.objectives.likelihoods import Gaussian
from faster_pruner.objectives.registry import kind_of
from tiny_batches import batch_for
from tiny_configs import build

AUTOS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
SHARE = 0.5
# Where a least number of units stays everywhere, half of the MACs may be out of reach for a tiny model.
LARGER_SHARES = (0.7, 0.9)


class TooSlow(BaseException):
    """The time limit of one model."""


def _alarm(*_: Any) -> None:
    raise TooSlow


def _pooled(returned: Any, batch: Batch) -> Predictions:
    """The mean over everything but rows and features of the first values that a model returns."""
    tensors = tensors_in(returned)
    first = next((tensor for tensor in tensors if tensor.requires_grad), tensors[0])
    rows = batch.rows.numel()
    values = first.reshape(rows, -1, first.shape[-1]).mean(dim=1) if first.numel() % rows == 0 else first
    return Predictions(values, batch.rows)


POOLED = Objective(name="mean of the features", readout=_pooled, likelihood=Gaussian())


def objective_of(model: Any) -> Objective:
    """What the model's class is for, or the mean of its features."""
    try:
        return kind_of(model).objective(model.config)
    except FasterPrunerError:
        return POOLED


def passes_hold(model: Any, sublayers: list[Any], inputs: dict[str, Any]) -> str:
    """Whether suspended forwards and gradients see the model as it is; empty when they do."""
    once = [s for s in sublayers if s.stack.calls == 1]
    order: list[str] = []
    hooks = [s.projection(model).register_forward_pre_hook(_noted(order, s.name)) for s in sublayers]
    with inference(model):
        plain = tensors_in(model(**inputs))
    for hook in hooks:
        hook.remove()
    ran = sorted(once, key=lambda s: order.index(s.name))
    batch = Batch(inputs=inputs, rows=torch.arange(rows_of(inputs)), labels=None)
    with lockstep(model, ran, [batch, batch], producers=True) as suspended:
        for s in ran:
            if s.aimed:
                suspended.skip_entry(s)
            suspended.skip(s)
        outputs = suspended.finish()
    if not all(_equal(tensors_in(each), plain) for each in outputs):
        return "suspended forwards differ"
    seen: list[str] = []
    with gradients(model, sublayers, lambda s, observed: seen.append(s.name)):
        torch.stack([t.sum() for t in tensors_in(model(**inputs)) if t.requires_grad]).sum().backward()
    if not seen or any(seen.count(name) != order.count(name) for name in seen):
        return f"gradients saw {len(seen)} of {len(order)} calls"
    return ""


def _noted(order: list[str], name: str) -> Callable[..., None]:
    return lambda module, args: order.append(name)


def _equal(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def reopened(folder: Path, auto: str, model: Any, inputs: dict[str, Any], *, plain: bool) -> Iterator[str]:
    """What is wrong with what is opened, way by way."""
    stock, auto_class = type(model), getattr(transformers, auto)
    with inference(model):
        expected = tensors_in(model(**inputs))
    ways: dict[str, Callable[[], Any]] = {"load": lambda: faster_pruner.load(folder)}
    # a part of a larger model has a config that not even dense auto classes open
    listed = type(model.config) in auto_class._model_mapping
    if listed:
        ways[auto] = lambda: auto_class.from_pretrained(folder)
    if not plain and listed:
        ways["its own code"] = lambda: auto_class.from_pretrained(folder, trust_remote_code=True)
    for way, opened in ways.items():
        again = opened()
        with inference(again):
            if not _equal(tensors_in(again(**inputs)), expected):
                yield f"opened by {way} it differs"
    try:
        with _without_us():
            again = stock.from_pretrained(folder)
    except Exception as error:
        if plain:
            yield f"plain transformers does not open it: {type(error).__name__}"
        return
    with inference(again):
        if not plain or not _equal(tensors_in(again(**inputs)), expected):
            yield "plain transformers opens something else"


@contextmanager
def _without_us() -> Generator[None]:
    """The auto classes as they are where faster-pruner was not imported: some models build others by them."""
    before = auto_factory._get_model_class
    auto_factory._get_model_class = before.__wrapped__
    try:
        yield
    finally:
        auto_factory._get_model_class = before


def one(auto: str, model_type: str, folder: Path) -> dict[str, Any]:
    """What is found of one model."""
    stage, began = "build", time.perf_counter()
    try:
        model = build(getattr(transformers, auto), model_type)
        stage = "run"
        inputs = batch_for(model)
        stage, began = "describe", time.perf_counter()
        with inference(model):
            description = describe(model, inputs)
        stage = "passes"
        broken = passes_hold(model, description.sublayers, inputs)
        if broken:
            return {"stage": stage, "reason": broken}
        stage = "prune"
        result, share = pruned(model, inputs)
        stage = "save"
        result.save(folder / "out")
        stage = "reopen"
        plain = result.report.opens_plain
        broken = "; ".join(reopened(folder / "out", auto, result.model, inputs, plain=plain))
    except FasterPrunerError as error:
        return {"stage": stage, "reason": _said(error, folder)[:300]}
    except Exception as error:
        text = _said(error, folder)[:150]
        return {"stage": stage, "crash": stage not in ("build", "run"), "reason": f"{type(error).__name__}: {text}"}
    kinds: dict[str, int] = {}
    for s in description.sublayers:
        kinds[re.sub(r":\d+$", "", s.spec.kind)] = kinds.get(re.sub(r":\d+$", "", s.spec.kind), 0) + 1
    return {
        "stage": "reopen" if broken else "passed",
        "reason": broken,
        "sublayers": kinds,
        "stacks": len({s.stack.name for s in description.sublayers}),
        "share": share,
        "kept": result.report.macs_kept,
        "plain": plain,
        "left": {re.sub(r"\.\d+\.", ".*.", path): why for path, why in description.left.items()},
        "seconds": round(time.perf_counter() - began, 2),
    }


def _said(error: Exception, folder: Path) -> str:
    """What an error says, without the folder that only existed here."""
    return re.sub(rf"{re.escape(str(folder))}/\S*?(?=['\s])", "out", " ".join(str(error).split()))


def pruned(model: Any, inputs: dict[str, Any]) -> tuple[Any, float]:
    """The model with half of its MACs, or as little as it may have."""
    for share in (SHARE, *LARGER_SHARES):
        try:
            return prune_model(model, [inputs] * 3, macs=share, objective=objective_of(model)), share
        except BudgetError as error:
            last = error
    raise last


def run(options: argparse.Namespace) -> None:
    """Walk."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # nobody asks how fast tiny models are
    outcome.measure = lambda *given, **options: []
    signal.signal(signal.SIGALRM, _alarm)
    part, parts = map(int, options.part.split("/"))
    found: dict[str, Any] = {}
    for auto in options.auto:
        known = getattr(transformers, auto)._model_mapping._model_mapping
        types = [t for t in known if t in transformers.CONFIG_MAPPING]
        if options.types:
            types = [t for t in types if t in options.types.split(",")]
        for model_type in sorted(types)[part::parts]:
            folder = Path(tempfile.mkdtemp(prefix="coverage-"))
            signal.alarm(options.seconds)
            try:
                answer = one(auto, model_type, folder)
            except TooSlow:
                answer = {"stage": "time", "reason": f"more than {options.seconds} s"}
            finally:
                signal.alarm(0)
                shutil.rmtree(folder, ignore_errors=True)
            found[f"{auto}:{model_type}"] = answer
            say = answer["reason"] or answer.get("sublayers")
            print(f"{auto[13:] or 'Base':24s} {model_type:24s} {answer['stage']:8s} {say}", flush=True)
        Path(options.out).write_text(json.dumps(found, indent=1))


def main() -> None:
    """Walk, or write what walks have found."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    walk = commands.add_parser("run")
    walk.add_argument("out")
    walk.add_argument("--auto", nargs="*", default=list(AUTOS))
    walk.add_argument("--types", default="")
    walk.add_argument("--part", default="0/1")
    walk.add_argument("--seconds", type=int, default=40)
    page = commands.add_parser("write")
    page.add_argument("parts", nargs="+")
    options = parser.parse_args()
    if options.command == "run":
        run(options)
        return
    found: dict[str, Any] = {}
    for part in options.parts:
        found |= json.loads(Path(part).read_text())
    print(write_page(found, AUTOS))


if __name__ == "__main__":
    main()
