"""Which of transformers' models can be described and proved: every model type under every auto class, tiny.

Beside the proof, every pass over a model is tried, and reopening at the pruned sizes.

python benchmarks/coverage.py OUT.json [--auto NAME ...] [--types a,b] [--part i/n] [--seconds 12]
"""

from __future__ import annotations

import argparse
import json
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from faster_pruner.data.batches import Batch
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.detection.detect import detect
from faster_pruner.model.detection.proof import proved, uneven, values
from faster_pruner.model.detection.watching import rows_of, twin
from faster_pruner.model.gradients import gradients
from faster_pruner.model.lockstep import lockstep
from faster_pruner.model.passes import tensors_in
from faster_pruner.model.shrink import resize, shrink
from faster_pruner.model.spec import parts_by_name, resolve
from tiny_batches import batch_for
from tiny_configs import build

AUTOS = (
    "AutoModelForSequenceClassification",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModel",
)


class TooSlow(BaseException):
    """The time limit of one model."""


def _alarm(*_: Any) -> None:
    raise TooSlow


def contract(auto: str, model_type: str, model: Any, sublayers: list[Any], inputs: dict[str, Any]) -> str:
    """What else the project needs of a family, tried with its own passes; empty when all of it holds."""
    order: list[str] = []
    hooks = [s.projection(model).register_forward_pre_hook(lambda m, a, n=s.name: order.append(n)) for s in sublayers]
    with torch.no_grad():
        plain = tensors_in(model(**inputs))
    for hook in hooks:
        hook.remove()
    ran = sorted(sublayers, key=lambda s: order.index(s.name))
    named = {s.name: s for s in sublayers}
    batch = Batch(inputs=inputs, rows=torch.arange(rows_of(inputs)), labels=None)
    with lockstep(model, ran, [batch, batch], producers=True) as suspended:
        for name in order:
            if named[name].aimed:
                suspended.skip_entry(named[name])
            suspended.skip(named[name])
        outputs = suspended.finish()
    if not all(all(map(torch.equal, tensors_in(o), plain)) for o in outputs):
        return "suspended forwards differ"
    seen: list[str] = []
    with gradients(model, ran, lambda s, observed: seen.append(s.name)):
        out = [t for t in tensors_in(model(**inputs)) if t.requires_grad]
        sum(t.sum() for t in out).backward()
    if not seen or any(seen.count(name) != order.count(name) for name in seen):
        return f"gradients saw {len(seen)} of {len(order)} calls"
    own = twin(model)
    cut = [s.resized(shrink(own, s.parts, uneven(sublayers)[s.name])) for s in sublayers]
    fresh = build(getattr(transformers, auto), model_type)
    parts = resize(fresh, parts_by_name(sublayers), {s.name: s.units for s in cut})
    if parts != parts_by_name(cut):
        return "reopened parts differ"
    fresh.load_state_dict(own.state_dict())
    if not all(map(torch.equal, values(fresh, inputs), values(own, inputs))):
        return "reopened differs"
    return ""


def one(auto: str, model_type: str) -> dict[str, Any]:
    """What is found of one model."""
    stage, began = "build", time.perf_counter()
    try:
        model = build(getattr(transformers, auto), model_type)
        stage = "forward"
        inputs = batch_for(model)
        stage, began = "detect", time.perf_counter()
        found = detect(model, inputs)
        stage = "prove"
        family, dropped = proved(model, found.family, inputs)
    except UnsupportedModelError as error:
        return {"stage": stage, "reason": str(error)[:300]}
    except TooSlow:
        return {"stage": stage, "reason": "time limit"}
    except Exception as error:
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0][:150]
        return {
            "stage": stage,
            "crash": True,
            "reason": f"{type(error).__name__}: {text} ({where.filename[-30:]}:{where.lineno})",
        }
    sublayers = resolve(model, family)
    try:
        broken = contract(auto, model_type, model, sublayers, inputs)
    except TooSlow:
        broken = "time limit"
    except BaseException as error:
        broken = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
    kinds: dict[str, int] = {}
    for s in sublayers:
        kinds[f"{s.stack.name}.{s.spec.kind}"] = kinds.get(f"{s.stack.name}.{s.spec.kind}", 0) + 1
    return {
        "stage": "broken" if broken else "passed",
        "reason": broken,
        "sublayers": kinds,
        "joins": sorted({s.spec.join for s in sublayers}),
        "least": sorted({s.spec.kind for s in sublayers if s.spec.least}),
        "dropped": dropped,
        "left": found.left,
        "seconds": round(time.perf_counter() - began, 2),
    }


def main() -> None:
    """Walk."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--auto", nargs="*", default=list(AUTOS))
    parser.add_argument("--types", default="")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--seconds", type=int, default=12)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _alarm)
    part, parts = map(int, options.part.split("/"))
    found: dict[str, Any] = {}
    for auto in options.auto:
        types = [
            t for t in getattr(transformers, auto)._model_mapping._model_mapping if t in transformers.CONFIG_MAPPING
        ]
        if options.types:
            types = [t for t in types if t in options.types.split(",")]
        for model_type in sorted(types)[part::parts]:
            signal.alarm(options.seconds)
            try:
                answer = one(auto, model_type)
            except TooSlow:
                answer = {"stage": "?", "reason": "time limit"}
            signal.alarm(0)
            found[f"{auto}:{model_type}"] = answer
            say = answer["reason"] or answer.get("sublayers")
            print(f"{auto[13:] or 'Base':24s} {model_type:24s} {answer['stage']:8s} {say}", flush=True)
        Path(options.out).write_text(json.dumps(found, indent=1))
    passed = {key.split(":")[1] for key, value in found.items() if value["stage"] == "passed"}
    print(len(passed), "distinct model types passed")


if __name__ == "__main__":
    main()
