"""How fast pruned SST-2 models really are: eager, torch.compile, ONNX and int8, sizes rounded or not; docs/runtimes.md.

python benchmarks/runtimes.py                  everything, on a quiet machine
python benchmarks/runtimes.py --parts sizes    some parts; the others stay those of the saved JSON
python benchmarks/runtimes.py --models DIR     keep the pruned models there, and take those that are there already
python benchmarks/runtimes.py --show           the page from the saved JSON, nothing computed
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.transformers.optimizer import optimize_model
from transformers import BertConfig, BertForSequenceClassification

from common import RESULTS, SHARED, environment, read_result, write_result
from faster_pruner import Budget, Data, Output, cut_again, prune
from faster_pruner.api.bench import bench
from faster_pruner.api.export import export
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.costs.cost import Macs, total
from faster_pruner.model.limits import made_up_inputs
from faster_pruner.model.shrink import shrink
from faster_pruner.runtimes.onnx import OnnxModel, export_onnx, quantise
from runtimes_page import page

PAGE = Path(__file__).parents[1] / "docs" / "runtimes.md"
MODEL = SHARED / "models" / "minilm-l6-sst2"
ROWS = Data(task="sst2", folder=SHARED / "data" / "glue")
BUDGETS = {
    "half": Budget(macs=0.5),
    "half, any size": Budget(macs=0.5, round_to=1),
    "half, multiples of 16": Budget(macs=0.5, round_to=16),
    "half, multiples of 32": Budget(macs=0.5, round_to=32),
    "half, uniform": Budget(macs=0.5, allocation="uniform"),
    "30 %": Budget(macs=0.3),
}
SHAPES = ((1, 32), (32, 128))
_WARM_UP, _TURNS = 1, 7


def measure(parts: list[str], kept: Path | None) -> dict[str, Any]:
    """Prune, export and time; parts that are not asked for are those of the earlier run."""
    found: dict[str, Any] = dict(read_result("runtimes") or {})
    with tempfile.TemporaryDirectory() as place:
        folders = _pruned(kept or Path(place), set(BUDGETS) if "sizes" in parts else {"half", "30 %"})
        models = {"dense": MODEL, **folders}
        main = {name: models[name] for name in ("dense", "half", "30 %")}
        measured: dict[str, Callable[[], Any]] = {
            "graphs": lambda: _graphs(main["dense"], main["half"], Path(place)),
            "runtimes": lambda: _timed(main, ("torch", "compile", "onnx", "onnx-int8")),
            "one core": lambda: _on_one_core(_opened(main), Path(place)),
            "base": lambda: _on_one_core(_bases(), Path(place)),
            "sizes": lambda: _on_one_core(_opened({n: m for n, m in models.items() if n != "30 %"}), Path(place)),
            "exported": lambda: {name: _export(folder, Path(place) / "x.onnx") for name, folder in main.items()},
        }
        for part in parts:
            print(part, flush=True)
            found[part] = measured[part]()
            versions = {**environment(), "onnxruntime": onnxruntime.__version__}
            found.setdefault("measured with", {})[part] = versions
    return found


def _pruned(place: Path, names: set[str]) -> dict[str, Path]:
    """Folders of the pruned models: one calibration, a cut for each budget."""
    folders: dict[str, Path] = {}
    kept = place / "statistics"
    for name, budget in BUDGETS.items():
        if name in names:
            folders[name] = place / name.replace(", ", "-").replace(" ", "-").replace("%", "percent")
            if folders[name].exists():
                continue
            if kept.exists():
                cut_again(kept, macs=budget, output=folders[name])
            else:
                prune(MODEL, ROWS, macs=budget, output=Output(folder=folders[name], statistics=kept))
    return folders


def _timed(models: dict[str, Path], runtimes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Checkpoints in turn in each runtime, for JSON."""
    timings = bench(list(models.values()), runtimes=runtimes, batches=(1, 32), sequences=(32, 128))
    label = {str(folder): name for name, folder in models.items()}
    return [{**asdict(timing), "model": label[timing.model]} for timing in timings]


def _opened(folders: dict[str, Path]) -> dict[str, Any]:
    """Checkpoints as models."""
    return {name: open_checkpoint(str(folder), device=torch.device("cpu")).model for name, folder in folders.items()}


def _bases() -> dict[str, Any]:
    """BERT-base with random weights, and half of its heads and neurons."""
    torch.manual_seed(0)
    models = {name: BertForSequenceClassification(BertConfig()).eval() for name in ("dense", "half")}
    for s in sublayers_of(models["half"]):
        shrink(models["half"], s.parts, torch.arange(s.units // 2))
    return models


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch and onnxruntime with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor_time(calls: Mapping[Any, Callable[[], object]]) -> dict[Any, list[float]]:
    """Seconds that this process computes in every call, in turn: what else runs on the machine matters little."""
    found: dict[Any, list[float]] = {key: [] for key in calls}
    for turn in range(_WARM_UP + _TURNS):
        for key, call in calls.items():
            started = time.process_time()
            call()
            if turn >= _WARM_UP:
                found[key].append(time.process_time() - started)
    return found


def _on_one_core(models: dict[str, Any], place: Path) -> list[dict[str, Any]]:
    """Models in turn in each runtime with one thread, in processor time."""
    found: list[dict[str, Any]] = []
    with _one_thread(), torch.no_grad():
        calls: dict[str, dict[str, Callable[..., Any]]] = {"torch": {}, "onnx": {}, "onnx-int8": {}}
        for number, (name, model) in enumerate(models.items()):
            file = export_onnx(model, place / f"{number}.onnx").file
            calls["torch"][name] = functools.partial(_in_torch, model)
            calls["onnx"][name] = OnnxModel(file)
            calls["onnx-int8"][name] = OnnxModel(quantise(file, file.with_suffix(".int8.onnx")))
        for (batch, tokens), runtime in itertools.product(SHAPES, calls):
            inputs = made_up_inputs(models["dense"], batch, tokens)
            seconds = _processor_time({n: functools.partial(call, inputs) for n, call in calls[runtime].items()})
            for name, own in seconds.items():
                found.append(
                    {
                        "model": name,
                        "runtime": runtime,
                        "batch": batch,
                        "sequence": tokens,
                        "ms": 1000 * statistics.median(own),
                        "speed_up": statistics.median(d / o for d, o in zip(seconds["dense"], own, strict=True)),
                        "ideal": _macs(models["dense"], tokens) / _macs(models[name], tokens),
                    }
                )
    return found


def _in_torch(model: Any, inputs: dict[str, Any]) -> Any:
    """One forward."""
    return model(**inputs)


def _macs(model: Any, length: int) -> float:
    """Of a row, in all sublayers."""
    sublayers = sublayers_of(model)
    return total(Macs({s.stack.name: float(length) for s in sublayers}), sublayers)


def _graphs(dense: Path, half: Path, place: Path) -> dict[str, Any]:
    """The same models in torch's own operators, in ours, and as onnxruntime's optimiser leaves the former."""
    files: dict[tuple[str, str], Path] = {}
    for name, folder in (("dense", dense), ("half", half)):
        model = open_checkpoint(str(folder), device=torch.device("cpu")).model
        for graph in ("torch's own", "ours"):
            file = place / f"{name}-{graph == 'ours'}.onnx"
            files[name, graph] = export_onnx(model, file, faster=graph == "ours").file
            files[name, f"{graph}, int8"] = quantise(file, file.with_suffix(".int8.onnx"))
        files[name, "optimised"] = place / f"{name}-optimised.onnx"
        optimised = optimize_model(str(files[name, "torch's own"]), "bert")
        optimised.save_model_to_file(str(files[name, "optimised"]))
    times: list[dict[str, Any]] = []
    with _one_thread():
        runs = {key: OnnxModel(file) for key, file in files.items()}
        for batch, tokens in SHAPES:
            inputs = made_up_inputs(model, batch, tokens)
            seconds = _processor_time({key: functools.partial(run, inputs) for key, run in runs.items()})
            for graph in dict.fromkeys(key[1] for key in files):
                slow, fast = seconds["dense", graph], seconds["half", graph]
                times.append(
                    {
                        "graph": graph,
                        "batch": batch,
                        "sequence": tokens,
                        "dense_ms": 1000 * statistics.median(slow),
                        "half_ms": 1000 * statistics.median(fast),
                        "speed_up": statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
                    }
                )
        del runs
    inputs = {name: value.numpy() for name, value in made_up_inputs(model, *SHAPES[-1]).items()}
    profiles = [
        {"model": name, "graph": graph, "ms": _profile(file, inputs, place)}
        for (name, graph), file in files.items()
        if graph != "optimised"
    ]
    return {"times": times, "profiles": profiles}


def _profile(file: Path, inputs: dict[str, Any], place: Path) -> dict[str, float]:
    """Milliseconds by type of operator with one thread: the shortest time of every node, in onnxruntime's profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(place / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {entry.name: inputs.get(entry.name, 0 * inputs["input_ids"]) for entry in session.get_inputs()}
    for _ in range(_WARM_UP + _TURNS):
        session.run(None, given)
    events = [e for e in json.loads(Path(session.end_profiling()).read_text()) if e["name"].endswith("kernel_time")]
    nodes = len(events) // (_WARM_UP + _TURNS)
    spent: Counter[str] = Counter()
    for place_in_graph in range(nodes):
        own = events[(_WARM_UP * nodes + place_in_graph) :: nodes]
        spent[own[0]["args"]["op_name"]] += min(event["dur"] for event in own) / 1000
    return dict(spent.most_common())


def _export(folder: Path, file: Path) -> list[dict[str, Any]]:
    """The steps of one export, for JSON."""
    steps = export(folder, output=file, int8=True, data=ROWS)
    return [
        {**asdict(step), "file": None, "ms": list(step.ms.items()), "speed_up": list(step.speed_up.items())}
        for step in steps
    ]


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--parts", default="graphs,runtimes,one core,base,sizes,exported")
    parser.add_argument("--models", type=Path, default=None)
    arguments = parser.parse_args()
    if not arguments.show:
        write_result("runtimes", measure(arguments.parts.split(","), arguments.models))
    saved = json.loads((RESULTS / "runtimes.json").read_text())
    PAGE.write_text(page(saved["rows"]))


if __name__ == "__main__":
    main()
