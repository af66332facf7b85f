"""How fast pruned SST-2 models really are: eager, torch.compile, ONNX and int8, sizes rounded or not; docs/runtimes.md.

python benchmarks/runtimes.py            everything, on a quiet machine
python benchmarks/runtimes.py --show     the page from the saved JSON, nothing computed
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, SHARED, read_result, write_result
from faster_pruner import Budget, Data, Output, cut_again, prune
from faster_pruner.api.bench import bench
from faster_pruner.api.export import export

PAGE = Path(__file__).parents[1] / "docs" / "runtimes.md"
MODEL = SHARED / "models" / "minilm-l6-sst2"
ROWS = Data(task="sst2", folder=SHARED / "data" / "glue")
BUDGETS = {
    "half": Budget(macs=0.5),
    "half, any size": Budget(macs=0.5, round_to=1),
    "half, multiples of 32": Budget(macs=0.5, round_to=32),
    "half, uniform": Budget(macs=0.5, allocation="uniform"),
    "30 %": Budget(macs=0.3),
}


def measure(parts: list[str]) -> dict[str, Any]:
    """Prune, export and time; parts that are not asked for are those of the earlier run."""
    found: dict[str, Any] = dict(read_result("runtimes") or {})
    with tempfile.TemporaryDirectory() as place:
        folders: dict[str, Path] = {}
        kept = Path(place) / "statistics"
        for name, budget in BUDGETS.items():
            folders[name] = Path(place) / name.replace(" ", "-").replace("%", "percent")
            if kept.exists():
                cut_again(kept, macs=budget, output=folders[name])
            else:
                prune(MODEL, ROWS, macs=budget, output=Output(folder=folders[name], statistics=kept))
        if "exported" in parts:
            chosen = {"dense": MODEL, "half": folders["half"], "30 %": folders["30 %"]}
            found["exported"] = {name: _export(folder, Path(place) / "x.onnx") for name, folder in chosen.items()}
        for part, runtimes, names in (
            ("runtimes", ("torch", "compile", "onnx"), ("half", "30 %")),
            ("sizes", ("torch",), tuple(BUDGETS)),
        ):
            if part in parts:
                models = [MODEL, *(folders[name] for name in names)]
                timings = bench(models, runtimes=runtimes, batches=(1, 32), sequences=(32, 128))
                label = dict(zip(map(str, models), ["dense", *names], strict=True))
                found[part] = [{**asdict(timing), "model": label[timing.model]} for timing in timings]
    return found


def _export(folder: Path, file: Path) -> list[dict[str, Any]]:
    """The steps of one export, for JSON."""
    steps = export(folder, output=file, int8=True, data=ROWS)
    return [
        {**asdict(step), "file": None, "ms": list(step.ms.items()), "speed_up": list(step.speed_up.items())}
        for step in steps
    ]


def page(found: dict[str, Any], environment: dict[str, str]) -> str:
    """Markdown."""
    lines = [
        "# Measured speed and other runtimes",
        "",
        "MiniLM-L6 on SST-2, default preset. Models take turns in each runtime; medians, speed-up over the dense model "
        "in the same runtime, beside what multiply-accumulates would give. Written by "
        "`benchmarks/runtimes.py`; " + ", ".join(f"{key} {value}" for key, value in environment.items()) + ".",
        "",
        "## Runtimes",
        "",
        "| batch x tokens | runtime | half the MACs | ideal | 30 % of the MACs | ideal | dense against eager |",
        "|---|---|---|---|---|---|---|",
    ]
    by = {(r["batch"], r["sequence"], r["runtime"], r["model"]): r for r in found["runtimes"]}
    for batch, sequence in dict.fromkeys((key[0], key[1]) for key in by):
        for runtime in dict.fromkeys(key[2] for key in by):
            own = [by[batch, sequence, runtime, name] for name in ("half", "30 %")]
            cells = [f"{timing['speed_up']:.2f}x | {timing['ideal']:.2f}x" for timing in own]
            eager = by[batch, sequence, "torch", "dense"]["ms"] / by[batch, sequence, runtime, "dense"]["ms"]
            lines.append(f"| {batch} x {sequence} | {runtime} | {' | '.join(cells)} | {eager:.2f}x |")
    lines += [
        "",
        "## Sizes",
        "",
        "Eager, half the MACs. The default keeps neurons in multiples of 8.",
        "",
        "| batch x tokens | multiples of 8 | any size | multiples of 32 | uniform |",
        "|---|---|---|---|---|",
    ]
    sizes = {(r["batch"], r["sequence"], r["model"]): r["speed_up"] for r in found["sizes"]}
    for batch, sequence in dict.fromkeys((key[0], key[1]) for key in sizes):
        names = ("half", "half, any size", "half, multiples of 32", "half, uniform")
        lines.append(
            f"| {batch} x {sequence} | " + " | ".join(f"{sizes[batch, sequence, n]:.2f}x" for n in names) + " |"
        )
    lines += [
        "",
        "## Export",
        "",
        "`faster-pruner export --int8`. The difference is the largest of any logit from PyTorch's, over shapes that "
        "the exporter never saw; speed-up is over PyTorch eager of the same model.",
        "",
        "| model | step | weights | largest difference | accuracy | loss | 1 x 32 | 32 x 128 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, steps in found["exported"].items():
        for step in steps:
            parity = "" if step["parity"] is None else f"{step['parity']:.0e}"
            speeds = " | ".join(f"{ratio:.2f}x" for _, ratio in step["speed_up"])
            quality = f"{step['metrics']['accuracy']:.2f} | {step['metrics']['loss']:.4f}"
            lines.append(f"| {name} | {step['name']} | {step['megabytes']:.1f} MB | {parity} | {quality} | {speeds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--parts", default="runtimes,sizes,exported")
    arguments = parser.parse_args()
    if not arguments.show:
        write_result("runtimes", measure(arguments.parts.split(",")))
    saved = json.loads((RESULTS / "runtimes.json").read_text())
    PAGE.write_text(page(saved["rows"], saved["environment"]))


if __name__ == "__main__":
    main()
