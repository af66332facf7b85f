"""One run by one, two and three processes (gloo, one thread each), from result.json: seconds of the slowest process.

python benchmarks/processes.py            results/processes.json and the table of docs/scale.md
python benchmarks/processes.py --show     the table from the saved JSON
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import DOCS, SHARED, read_result, write_result, write_table

NAME = "processes"
STAGES = ("statistics", "selection", "recovery")


def one(count: int, rows: int) -> dict[str, Any]:
    """Seconds of each process by stage, and the units that are left."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        launcher = launcher if count > 1 else [sys.executable]
        command = [*launcher, "-m", "faster_pruner", "prune", str(SHARED / "models" / "minilm-l6-sst2")]
        command += ["--task", "sst2", "--data", str(SHARED / "data" / "glue"), "--macs", "0.5", "--no-eval", "--quiet"]
        command += ["--calibration-rows", str(rows), "--precision", "float32", "-o", str(target)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found = json.loads((target / "result.json").read_text())
        processes = found["processes"] or [{**found["seconds"], "waiting": 0.0}]
        return {"count": count, "processes": processes, "units": [each["units"] for each in found["sublayers"]]}


def show() -> None:
    """The table of docs/scale.md."""
    lines = [
        "| processes | " + " | ".join(STAGES) + " | in exchanges | the same units as one |",
        "|---|---|---|---|---|---|",
    ]
    runs = read_result(NAME)
    for run in runs:
        slowest = [max(each.get(stage, 0.0) for each in run["processes"]) for stage in STAGES]
        waiting = max(each["waiting"] for each in run["processes"])
        same = "yes" if run["units"] == runs[0]["units"] else "no"
        cells = " | ".join(f"{seconds:.1f}" for seconds in (*slowest, waiting))
        lines.append(f"| {run['count']} | {cells} | {same} |")
    write_table(DOCS / "scale.md", NAME, lines)


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1,2,3")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if not arguments.show:
        write_result(NAME, [one(int(count), arguments.rows) for count in arguments.counts.split(",")])
    show()


if __name__ == "__main__":
    main()
