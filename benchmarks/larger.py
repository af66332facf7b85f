"""Larger than memory: a made-up Llama whose weights are more than the run may hold, against the run in memory.

python benchmarks/larger.py                            all: results/larger.json and the tables in docs/scale.md
python benchmarks/larger.py --layers 32 --share 2      a smaller model, sooner
python benchmarks/larger.py --show                     write the tables again

The run in files is confined to a control group (memory, version 1 or 2), which counts what a process holds and what
the system keeps of files for it, from then on: its limit is a share of the weights.
Where no group can be made (that takes root on Linux), nothing is limited, and the table says so. Both runs have the
same rows, batches and seed, recover by least squares alone, and what they write is compared byte for byte. Memory is
what is the process's own (RssAnon), beside what it had before it began; the formula is that of `method.memory`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import SHARED, read_result, status, write_result, write_table
from decoders import LEAST_SQUARES

NAME = "larger"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SIZES = {"hidden_size": 1024, "intermediate_size": 1408, "num_attention_heads": 16, "num_key_value_heads": 4}
ROWS, LENGTH, BATCH, SHELF, LAYERS = 16, 128, 512, 64 << 20, 74
# Before memory is watched, a small model goes the same way: what packages hold from then on is none of the run's.
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
MIB = 1 << 20


def make(folder: Path, layers: int, sizes: dict[str, int]) -> int:
    """A Llama with random weights, float32, and the tokenizer of pylm-llama: bytes of its weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "pylm-llama")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, **sizes)
    model = LlamaForCausalLM(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return sum(parameter.numel() * 4 for parameter in model.parameters())


class Watch:
    """Watches the memory of this process; listens to which stage it is at."""

    def __init__(self) -> None:
        self.stage, self.peaks, self.before, self.over = "", dict[str, int](), 0, threading.Event()

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins."""
        del total
        self.stage = stage

    def step(self) -> None:
        """Nothing."""

    def end(self, seconds: float) -> None:
        """Nothing: what comes between two stages counts for the first."""

    def begin(self) -> None:
        """From here on."""
        self.before = self.held()
        threading.Thread(target=self._watch, daemon=True).start()

    def held(self) -> int:
        """Bytes of memory of this process that are not the system's copy of some file."""
        return status()["RssAnon"]

    def _watch(self) -> None:
        while not self.over.wait(0.01):
            self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), self.held() - self.before)


def calibration(weights: Any, shelf: int) -> Any:
    """Options of a run: where weights lie, and bytes of hidden states in memory."""
    from faster_pruner import CalibrationOptions

    return CalibrationOptions(
        rows=ROWS, max_length=LENGTH, tokens_per_batch=BATCH, precision="float32", memory_limit=shelf, weights=weights
    )


def not_measured(*given: Any, **options: Any) -> list[Any]:
    """In place of the latencies."""
    del given, options
    return []


def child(given: argparse.Namespace) -> dict[str, Any]:
    """One run: what it took."""
    from faster_pruner import Data, Run, prune
    from faster_pruner.api import outcome

    options = calibration(given.weights, SHELF)
    data, watch = Data(folder=SHARED / "models" / "pylm-llama", task="language-modeling", judged=8), Watch()
    # speed is no question here, and is not measured of weights in files
    outcome.measure = not_measured
    asked: dict[str, Any] = {"macs": 0.5, "method": LEAST_SQUARES, "calibration": options}
    prune(given.small, data, **asked)
    limited = given.allowed > 0 and confine(given.allowed)
    watch.begin()
    start, used = time.perf_counter(), time.process_time()
    report = prune(given.model, data, output=given.output, run=Run(progress=watch), **asked).report
    watch.over.set()
    return {
        "weights": given.weights,
        "limit": given.allowed if limited else 0,
        "before": watch.before,
        "peaks": watch.peaks,
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - used,
        "stages": report.seconds,
        "digest": digest(Path(given.output)),
    }


def groups(owner: int) -> list[tuple[Path, str]]:
    """Where the group of a benchmark's process may be, and its file for the limit."""
    return [
        (Path(f"/sys/fs/cgroup/memory/larger-{owner}"), "memory.limit_in_bytes"),
        (Path(f"/sys/fs/cgroup/larger-{owner}"), "memory.max"),
    ]


def confine(limit: int) -> bool:
    """Put this process into a control group of its own with so much memory."""
    for group, name in groups(os.getppid()):
        try:
            group.mkdir(exist_ok=True)
            (group / name).write_text(str(limit))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue
        return True
    return False


def digest(folder: Path) -> str:
    """Of all weights files."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while part := stream.read(1 << 24):
                found.update(part)
    return found.hexdigest()


def formula(model: Path) -> dict[str, int]:
    """What the files run should hold, by arithmetic."""
    import torch

    from faster_pruner.checkpoint.opening import open_model
    from faster_pruner.host.mapped import in_files
    from faster_pruner.method.memory import memory_in_files

    with in_files():
        opened = open_model(model, device=torch.device("cpu"))
        sublayers = opened.describe().sublayers
    vocabulary = opened.model.config.vocab_size
    return memory_in_files(sublayers, batch=BATCH, vocabulary=vocabulary, limit=SHELF)


def measured(layers: int, share: int) -> dict[str, Any]:
    """Both runs."""
    with tempfile.TemporaryDirectory() as scratch:
        model, small = Path(scratch) / "model", Path(scratch) / "small"
        size = make(model, layers, SIZES)
        make(small, 2, SMALL)
        runs: list[dict[str, Any]] = []
        for weights, allowed in (("files", size // share), ("memory", 0)):
            command = [sys.executable, __file__, "--weights", weights, "--allowed", str(allowed)]
            command += ["--model", str(model), "--small", str(small), "--output", str(Path(scratch) / weights)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for group, _ in groups(os.getpid()):
                with suppress(OSError):
                    group.rmdir()
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], flush=True)
        return {"layers": layers, "bytes": size, "formula": formula(model), "runs": runs}


def table(found: dict[str, Any]) -> list[str]:
    """The runs."""
    from faster_pruner.method.memory import peak_in_files

    files, memory = found["runs"]
    predicted, held = peak_in_files(found["formula"]), max(files["peaks"].values())
    limit = f"{files['limit'] / MIB:.0f}" if files["limit"] else "none could be set"
    head = f"weights of {found['bytes'] / MIB:.0f} MiB | memory allowed | held at most | by the formula | time"
    lines = [f"| {head} |", "|---|---|---|---|---|"]
    ratio = files["seconds"] / memory["seconds"]
    lines.append(f"| in files | {limit} | {held / MIB:.0f} | {predicted / MIB:.0f} | {ratio:.2f} |")
    lines.append(f"| in memory | – | {max(memory['peaks'].values()) / MIB:.0f} | | 1 |")
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--share", type=int, default=4, help="of the weights that the run in files may hold: 1 / share")
    parser.add_argument("--show", action="store_true")
    for name in ("weights", "model", "small", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--allowed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.weights:
        print(json.dumps(child(given)))
        return
    if not given.show:
        write_result(NAME, measured(given.layers, given.share))
    write_table(PAGE, NAME, table(read_result(NAME)))


if __name__ == "__main__":
    main()
