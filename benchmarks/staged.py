"""Larger than a GPU: what a run holds there whose weights stay in files, against the formula and the run in memory.

python benchmarks/staged.py                          on a GPU, else on the tests' device; the table in docs/scale.md
python benchmarks/staged.py --llama-3-8b             on a GPU: random weights of those dimensions, within 24 GB
python benchmarks/staged.py --show                   write the table again

The tests' device (`tests/accelerator.cpp`) has the host's memory and computes on the CPU: bytes that are allocated on
it are counted as they would be anywhere, and times say nothing. Least squares alone, half the MACs, 16 rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, read_result, write_result, write_table
from decoders import LEAST_SQUARES
from larger import BATCH, MIB, calibration, digest, make, not_measured

NAME = "staged"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SHELF = 32 << 20
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
CASES: dict[str, tuple[int, dict[str, int]]] = {
    "16 layers of 512": (16, {"hidden_size": 512, "intermediate_size": 1408, **HEADS}),
    "8 layers of 768": (8, {"hidden_size": 768, "intermediate_size": 3072, **HEADS}),
}
LLAMA: dict[str, tuple[int, dict[str, int]]] = {
    "Llama-3-8B": (
        32,
        {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    )
}


class Meter:
    """Bytes that torch has allocated on a device, at most, by stage; listens to which stage a run is at."""

    def __init__(self, device: Any) -> None:
        self.device, self.stage, self.peaks = device, "load", dict[str, int]()

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins."""
        del total
        self.note()
        self.stage = stage

    def step(self) -> None:
        """Nothing."""

    def end(self, seconds: float) -> None:
        """Nothing: what comes between two stages counts for the first."""

    def note(self) -> None:
        """What the present stage has held."""
        self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), self.device.max_memory_allocated())
        self.device.reset_peak_memory_stats()


def the_device(name: str) -> Any:
    """The module of a device: torch's own for a GPU, else the tests' one."""
    import torch

    if name == "cuda":
        return torch.cuda
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import accelerator  # pyright: ignore[reportMissingImports]

    return accelerator.start()


def child(given: argparse.Namespace) -> dict[str, Any]:
    """One run: what it took."""
    from faster_pruner import Data, Run, prune
    from faster_pruner.api import outcome

    device = the_device(given.device)
    options = calibration(given.weights, SHELF)
    data, meter = Data(folder=SHARED / "models" / "pylm-llama", task="language-modeling", judged=8), Meter(device)
    outcome.measure = not_measured
    start = time.perf_counter()
    run = Run(device=given.device, progress=meter)
    report = prune(
        given.model, data, output=given.output, macs=0.5, method=LEAST_SQUARES, calibration=options, run=run
    ).report
    meter.note()
    return {
        "weights": given.weights,
        "peaks": meter.peaks,
        "seconds": time.perf_counter() - start,
        "verified": report.verified,
        "digest": digest(Path(given.output)),
    }


def formula(model: Path) -> dict[str, int]:
    """What the run from files should hold there, by arithmetic."""
    import torch

    from faster_pruner.checkpoint.opening import open_model
    from faster_pruner.host.mapped import in_files
    from faster_pruner.method.memory import memory_staged

    with in_files():
        opened = open_model(model, device=torch.device("cpu"))
        sublayers = opened.describe().sublayers
        vocabulary = opened.model.config.vocab_size
        return memory_staged(opened.model, sublayers, batch=BATCH, vocabulary=vocabulary, limit=SHELF)


def measured(case: str, device: str) -> dict[str, Any]:
    """Both runs; the one in memory alone where it fits."""
    layers, sizes = {**CASES, **LLAMA}[case]
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        size = make(model, layers, sizes)
        runs: list[dict[str, Any]] = []
        for weights in ("files",) if case in LLAMA else ("files", "memory"):
            command = [sys.executable, __file__, "--weights", weights, "--device", device, "--model", str(model)]
            done = subprocess.run(
                [*command, "--output", str(Path(scratch) / weights)], check=True, stdout=subprocess.PIPE, text=True
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], flush=True)
        return {"case": case, "device": device, "bytes": size, "formula": formula(model), "runs": runs}


def table(found: list[dict[str, Any]]) -> list[str]:
    """A row per model."""
    from faster_pruner.method.memory import peak_in_files

    lines = [
        "| model | weights, MiB | on the device at most, MiB | by the formula | error | at its most in "
        "| with weights in memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in found:
        files = record["runs"][0]
        stage = max(files["peaks"], key=files["peaks"].__getitem__)
        held, expected = files["peaks"][stage], peak_in_files(record["formula"])
        whole = [f"{max(run['peaks'].values()) / MIB:.0f}" for run in record["runs"][1:]]
        where = "" if record["device"] == "cuda" else " (the tests' device)"
        lines.append(
            f"| {record['case']}{where} | {record['bytes'] / MIB:.0f} | {held / MIB:.0f} | {expected / MIB:.0f} "
            f"| {expected / held - 1:+.0%} | {stage} | {whole[0] if whole else '–'} |"
        )
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--llama-3-8b", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--device", choices=["cuda", "fake"], default=None)
    for name in ("weights", "model", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.weights:
        print(json.dumps(child(given)))
        return
    found: list[dict[str, Any]] = read_result(NAME) or []
    if not given.show:
        import torch

        device = given.device or ("cuda" if torch.cuda.is_available() else "fake")
        for case in LLAMA if given.llama_3_8b else given.cases.split(","):
            record = measured(case, device)
            found = [r for r in found if (r["case"], r["device"]) != (case, device)] + [record]
            write_result(NAME, found)
    write_table(PAGE, NAME, table(found))


if __name__ == "__main__":
    main()
