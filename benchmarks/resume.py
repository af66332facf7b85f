"""What it costs to be able to go on, and what it saves: `--resume` against a run without, each in a process of its own.

python benchmarks/resume.py            results/resume.json and the table in docs/cost.md; on a quiet machine
python benchmarks/resume.py --show     write the table again

In turn: a run that keeps nothing, one that keeps what it does, and one that is killed in the middle of its recovery and
begun again. Time is from the first stage to the folder on disk; nothing is evaluated or timed in them. What lies in the
working folder is measured when the run is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, read_result, write_result, write_table
from larger import not_measured

NAME = "resume"
PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
CASES: dict[str, float] = {"SST-2, .5": 0.5, "SST-2, .1": 0.1}
STEPS = 6


class Killer:
    """Ends the process in the last recovery, after some of its sublayers."""

    def __init__(self, recoveries: int) -> None:
        self.left, self.steps, self.stage = recoveries, 0, ""

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins."""
        del total
        self.stage = stage
        self.left -= stage == "recovery"

    def step(self) -> None:
        """A sublayer is done."""
        self.steps += self.stage == "recovery" and self.left == 0
        if self.steps == STEPS:
            os.kill(os.getpid(), signal.SIGKILL)

    def end(self, seconds: float) -> None:
        """Nothing."""


def child(macs: float, folder: str, *, resume: bool, killed: bool) -> None:
    """One run; prints its seconds."""
    from faster_pruner import Data, Output, Run, prune
    from faster_pruner.api import outcome

    outcome.measure = not_measured
    data = Data(task="sst2", folder=SHARED / "data" / "glue", judged=0)
    # below a quarter of the MACs there are two rounds
    run = Run(progress=Killer(1 if macs > 0.25 else 2)) if killed else Run()
    start = time.perf_counter()
    prune(SHARED / "models" / "minilm-l6-sst2", data, macs=macs, output=Output(folder=folder, resume=resume), run=run)
    print(time.perf_counter() - start)


def one(macs: float, folder: Path, *flags: str) -> float:
    """Seconds of a run in a process of its own; nothing of one that is killed."""
    command = [sys.executable, __file__, "--child", str(macs), str(folder), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == (-signal.SIGKILL if "--killed" in flags else 0), done.returncode
    return 0.0 if "--killed" in flags else float(done.stdout.splitlines()[-1])


def measured(case: str, repeats: int) -> dict[str, Any]:
    """Every kind of run, in turn."""
    found: dict[str, Any] = {"case": case, "plain": [], "keeps": [], "goes on": [], "kept": 0}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            found["plain"].append(one(CASES[case], place / "plain"))
            found["keeps"].append(one(CASES[case], place / "keeps", "--resume"))
            one(CASES[case], place / "killed", "--resume", "--killed")
            found["kept"] = sum(f.stat().st_size for f in (place / ".killed.resume").rglob("*") if f.is_file())
            found["goes on"].append(one(CASES[case], place / "killed", "--resume"))
            same = [(place / name / "model.safetensors").read_bytes() for name in ("plain", "killed")]
            assert same[0] == same[1], "the bytes are not those of a run that was not interrupted"
    return found


def table(found: list[dict[str, Any]]) -> list[str]:
    """A row per case: medians, as shares of the run that keeps nothing."""
    lines = ["| run | with `--resume` | killed in its recovery and begun again: the second run | kept, MB |"]
    lines.append("|---|---|---|---|")
    for record in found:
        shares = [
            [each / plain for each, plain in zip(record[kind], record["plain"], strict=True)]
            for kind in ("keeps", "goes on")
        ]
        cells = [f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})" for each in shares]
        lines.append(f"| {record['case']} | {cells[0]} | {cells[1]} | {record['kept'] / 1e6:.0f} |")
    return lines


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=";".join(CASES), help="separated by semicolons")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    for name in ("resume", "killed"):
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(float(given.child[0]), given.child[1], resume=given.resume, killed=given.killed)
        return
    if not given.show:
        write_result(NAME, [measured(case, given.repeats) for case in given.cases.split(";")])
    write_table(PAGE, NAME, table(read_result(NAME)))


if __name__ == "__main__":
    main()
