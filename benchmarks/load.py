"""Load: a million calibration tokens within a fixed memory limit, ten runs in one process, four runs at once.

python benchmarks/load.py --part tokens       a limit that the system holds, on what a process may allocate
python benchmarks/load.py --part again        resident memory after every run; also with --malloc
python benchmarks/load.py --part together     four commands with one parent of their outputs, and one cache
python benchmarks/load.py --show              docs/scale.md from the saved JSON, nothing computed

MiniLM-L6 fine-tuned on SST-2, half the MACs, float32 passes, one thread each. Linux alone says what a process holds.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from common import DOCS, SHARED, open_model, read_result, rows_of, status, write_result, write_table

TOKENS, AGAIN, TOGETHER = "load-tokens", "load-again", "load-together"
# The same with Python's small objects in the C library's heap, where what is free can be given back.
AGAIN_MALLOC = "load-again-malloc"
MODEL, GLUE_ROWS = SHARED / "models" / "minilm-l6-sst2", SHARED / "data" / "glue"
MIB = 1024**2
# Name of an output -> what is asked for. Two that measure, so that both read and write one table in the cache.
COMMANDS: dict[str, list[str]] = {
    "half": ["--macs", "0.5"],
    "third": ["--macs", "0.3", "--preset", "kwon2022"],
    "fast": ["--speedup", "1.5"],
    "faster": ["--speedup", "2"],
}
# Of these the result does not hang on a clock.
REPEATABLE = ("half", "third")


def child(*arguments: str, temporary: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What this script says in a process of its own, and the most that the system counted of it meanwhile."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    command = [sys.executable, __file__, "--child", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak: dict[str, int] = {}
    while process.poll() is None:
        # of a process that has just ended nothing is said
        with suppress(OSError):
            peak |= {key: max(value, peak.get(key, 0)) for key, value in status(process.pid).items()}
        time.sleep(0.02)
    assert process.stdout is not None
    printed = process.stdout.read()
    if process.returncode:
        return {"failed": process.returncode}, peak
    return json.loads(printed.splitlines()[-1]), peak


def write_rows(folder: Path, tokens: int) -> tuple[int, int]:
    """SST-2's training rows, from the first one again where they do not hold so many real tokens.

    Returns:
        The number of rows, and their real tokens.
    """
    opened = open_model("sst2", "cpu")
    lengths = rows_of(opened, "sst2", ("train",)).lengths
    with gzip.open(GLUE_ROWS / "sst2" / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = [line.rstrip("\n") for line in stream]
    assert len(lines) == len(lengths)
    (folder / "sst2").mkdir(parents=True)
    held = 0
    with (folder / "sst2" / "train.jsonl").open("w", encoding="utf-8") as out:
        for place in count():
            if held >= tokens:
                return place, held
            out.write(f"{lines[place % len(lines)]}\n")
            held += int(lengths[place % len(lines)])
    raise AssertionError


def limited(folder: Path, rows: int, beyond: int, shelf: int | None) -> dict[str, Any]:
    """One run that may allocate so many bytes beyond what opening the model has taken, in this process."""
    import resource

    from faster_pruner import CalibrationOptions, Data, Output, prune
    from faster_pruner.host import spill

    spilled = [0]
    write = spill.Shelf.write

    def counted(self: spill.Shelf, tensor: Any) -> Path:
        spilled[0] += tensor.nbytes
        return write(self, tensor)

    spill.Shelf.write = counted
    # what is imported late is there, and the memory of a model that is let go of
    open_model("sst2", "cpu")
    before = status()
    limit = before["VmData"] + beyond
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    options = CalibrationOptions(rows=rows, precision="float32", memory_limit=shelf)
    data = Data(task="sst2", folder=folder, judged=0)
    report = prune(MODEL, data, macs=0.5, output=Output(folder=folder / "out"), calibration=options).report
    return {
        "rows": report.calibration_rows,
        "tokens": round(report.mean_length * report.calibration_rows),
        "opened": before,
        "spilled": spilled[0],
        "seconds": report.seconds,
        "processor_seconds": time.process_time(),
        "verified": report.verified,
    }


def tokens(size: int, beyond: int, shelf: int | None) -> dict[str, Any]:
    """A run on so many tokens, within the limit."""
    with tempfile.TemporaryDirectory() as place:
        temporary = Path(place) / "temporary"
        temporary.mkdir()
        rows, held = write_rows(Path(place) / "data", size)
        told = "" if shelf is None else str(shelf)
        what, peak = child("tokens", str(Path(place) / "data"), str(rows), str(beyond), told, temporary=temporary)
        left = [each.name for each in temporary.iterdir()]
    return {"size": size, "asked": held, "beyond": beyond, "shelf": shelf, **what, "peak": peak, "left": left}


def all_tokens(sizes: Sequence[int], beyond: int, shelf: int | None) -> None:
    """Every number of tokens; what was measured of others stays."""
    for size in sizes:
        record = tokens(size, beyond, shelf)
        print(record, flush=True)
        found = [r for r in read_result(TOKENS) or [] if (r["size"], r["shelf"]) != (size, shelf)]
        write_result(TOKENS, sorted([*found, record], key=lambda r: (r["shelf"] is None, r["size"])))


def again(runs: int, rows: int) -> list[dict[str, int]]:
    """Resident bytes after every run of one process: as it is, and once free memory is given back to the system."""
    import ctypes
    import gc

    from faster_pruner import CalibrationOptions, Data, Output, prune

    options = CalibrationOptions(rows=rows, precision="float32")
    data = Data(task="sst2", folder=GLUE_ROWS, judged=256)
    trim = ctypes.CDLL(None).malloc_trim
    found: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            prune(
                MODEL, data, macs=0.5, output=Output(folder=Path(folder) / "out", overwrite=True), calibration=options
            )
            gc.collect()
            as_it_is = status()["VmRSS"]
            trim(0)
            found.append({"resident": as_it_is, "trimmed": status()["VmRSS"], "objects": len(gc.get_objects())})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def fingerprint(folder: Path) -> str:
    """Of the weights and masks in a folder."""
    files = [folder / "model.safetensors", folder / "masks.json"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def started(parent: Path, name: str, rows: int, scratch: Path) -> subprocess.Popen[str]:
    """One of the commands."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"XDG_CACHE_HOME": str(scratch / "cache"), "TMPDIR": str(scratch / "temporary")}
    (scratch / "temporary").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "faster_pruner", "prune", str(MODEL), "--task", "sst2", "--data", str(GLUE_ROWS)]
    command += [*COMMANDS[name], "--calibration-rows", str(rows), "--eval-rows", "128", "--precision", "float32"]
    command += ["-o", str(parent / name), "--quiet"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def together(rows: int) -> list[dict[str, Any]]:
    """All commands at once, and those whose bytes can be compared by themselves, too."""
    with tempfile.TemporaryDirectory() as place:
        parent, scratch = Path(place) / "results", Path(place) / "scratch"
        running = {name: started(parent, name, rows, scratch) for name in COMMANDS}
        said = {name: process.communicate()[1] for name, process in running.items()}
        alone: dict[str, str] = {}
        for name in REPEATABLE:
            started(Path(place) / "alone", name, rows, Path(place) / "own").communicate()
            alone[name] = fingerprint(Path(place) / "alone" / name)
        expected = {*COMMANDS, *(f"{name}.toml" for name in COMMANDS)}
        strangers = sorted({each.name for each in parent.iterdir()} ^ expected)
        left = [each.name for each in (scratch / "temporary").iterdir()]
        left += [each.name for each in (scratch / "cache").rglob("*.partial")]
        found: list[dict[str, Any]] = []
        for name, process in running.items():
            report = json.loads((parent / name / "result.json").read_text())
            inside = {each.relative_to(parent / name).as_posix() for each in (parent / name).rglob("*")}
            found.append(
                {
                    "name": name,
                    "asked": " ".join(COMMANDS[name]),
                    "code": process.returncode,
                    "said": said[name],
                    "verified": report["verified"],
                    "whole": inside == set(report["files"]),
                    "as_alone": fingerprint(parent / name) == alone[name] if name in alone else None,
                    "strangers": strangers,
                    "left": left,
                    "tables": len([*(scratch / "cache").rglob("*.json")]),
                }
            )
            print(found[-1], flush=True)
    return found


def tokens_lines(records: list[dict[str, Any]]) -> list[str]:
    """The table of runs within a limit."""
    lines = [
        "| calibration tokens | rows | hidden states in memory, at most | may allocate beyond opening, MB "
        "| anonymous memory after opening, MB | at its peak, MB | more, MB | through files, GB | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        shelf = "no limit" if r["shelf"] is None else f"{r['shelf'] / MIB:.0f} MB"
        cells = [f"{r['asked']}", f"{r.get('rows', '')}", shelf, f"{r['beyond'] / MIB:.0f}"]
        if "failed" in r:
            cells += ["", f"{r['peak']['RssAnon'] / MIB:.0f}", "", "", "ends: no memory"]
        else:
            first, peak = r["opened"]["RssAnon"], r["peak"]["RssAnon"]
            cells += [f"{size / MIB:.0f}" for size in (first, peak, peak - first)]
            cells += [f"{r['spilled'] / 1e9:.1f}", "finishes, verified" if r["verified"] else "not verified"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def again_lines(records: list[dict[str, int]]) -> list[str]:
    """The table of runs in one process."""
    lines = ["| after run | " + " | ".join(str(i + 1) for i in range(len(records))) + " | from 2 to the last |"]
    lines.append("|---|" + "---|" * (len(records) + 1))
    for what, key, unit in (("resident, MB", "resident", MIB), ("free memory given back, MB", "trimmed", MIB)):
        values = [record[key] / unit for record in records]
        growth = f"{values[-1] / values[1] - 1:+.1%}"
        lines.append(f"| {what} | " + " | ".join(f"{value:.0f}" for value in values) + f" | {growth} |")
    values = [record["objects"] for record in records]
    lines.append("| Python objects | " + " | ".join(map(str, values)) + f" | {values[-1] / values[1] - 1:+.1%} |")
    return lines


def together_lines(records: list[dict[str, Any]]) -> list[str]:
    """The table of runs at once."""
    lines = ["| asked for | ends with | verified, and no file more or less | as when run alone |", "|---|---|---|---|"]
    for r in records:
        alone = {None: "timed", True: "the same bytes", False: "other bytes"}[r["as_alone"]]
        whole = "yes" if r["whole"] and r["verified"] and not r["strangers"] and not r["left"] else "no"
        lines.append(f"| `{r['asked']}` | {r['code']} | {whole} | {alone} |")
    return lines


def show() -> None:
    """The tables of docs/scale.md."""
    for name, lines_of in (
        (TOKENS, tokens_lines),
        (AGAIN, again_lines),
        (AGAIN_MALLOC, again_lines),
        (TOGETHER, together_lines),
    ):
        found = read_result(name)
        if found:
            write_table(DOCS / "scale.md", name, lines_of(found))


def main() -> None:
    """Run or show one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["tokens", "again", "together"])
    parser.add_argument("--sizes", default="100000,1000000", help="calibration tokens")
    parser.add_argument("--beyond", type=int, default=1536, help="MiB that a run may allocate")
    parser.add_argument("--shelf", type=int, default=64, help="MiB of hidden states in memory; -1 for no limit")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--malloc", action="store_true", help="Python's small objects in the C library's heap")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, *rest = given.child
        if what == "tokens":
            folder, rows, beyond, shelf = rest
            print(json.dumps(limited(Path(folder), int(rows), int(beyond), int(shelf) if shelf else None)))
        else:
            print(json.dumps(again(*map(int, rest))))
        return
    if given.part == "tokens":
        sizes = [int(size) for size in given.sizes.split(",")]
        all_tokens(sizes, given.beyond * MIB, None if given.shelf < 0 else given.shelf * MIB)
    elif given.part == "again":
        if given.malloc:
            os.environ["PYTHONMALLOC"] = "malloc"
        with tempfile.TemporaryDirectory() as temporary:
            found, _ = child("again", str(given.runs), str(given.rows), temporary=Path(temporary))
        write_result(AGAIN_MALLOC if given.malloc else AGAIN, found)
    elif given.part == "together":
        write_result(TOGETHER, together(given.rows))
    show()


if __name__ == "__main__":
    main()
