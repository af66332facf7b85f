"""Larger than memory: a made-up Llama whose weights are four times what the run may hold, against the run in memory.

python benchmarks/larger.py                   all: results/larger.json and the table in docs/scale.md
python benchmarks/larger.py --layers 8        a smaller model
python benchmarks/larger.py --show            write the table again

The run in files is confined to a control group (memory, version 1 or 2), which also counts what the system keeps of
files: its limit is what the process holds after its imports, and a quarter of the weights. Where no group can be made
(that takes root on Linux), nothing is limited, and the table says so. Both runs have the same rows, batches and seed, and
what they write is compared byte for byte.
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
from pathlib import Path
from typing import Any

from common import SHARED, read_result, summary, write_result, write_table

NAME = "larger"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4}
ROWS, LENGTH, SHELF = 32, 128, 64 << 20


def make(folder: Path, layers: int) -> int:
    """A Llama with random weights, float32, and the tokenizer of pylm-llama: bytes of its weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "pylm-llama")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, **SIZES)
    model = LlamaForCausalLM(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return sum(parameter.numel() * 4 for parameter in model.parameters())


def anonymous() -> int:
    """Bytes of memory of this process that are not the system's copy of some file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def child(model: str, output: str, weights: str, allowed: int) -> None:
    """One run: what it took, on standard output."""
    from faster_pruner import prune
    from faster_pruner.data.tasks import Data
    from faster_pruner.options import CalibrationOptions

    before, peak, done = anonymous(), [0], threading.Event()
    limited = allowed > 0 and confine(before + allowed)

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    data = Data(folder=SHARED / "models" / "pylm-llama", task="language-modeling", judged=8)
    options = CalibrationOptions(
        rows=ROWS, max_length=LENGTH, tokens_per_batch=1024, precision="float32", memory_limit=SHELF, weights=weights
    )
    report = prune(model, data, macs=0.5, output=output, calibration=options).report
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    found = {
        "weights": weights,
        "limit": allowed if limited else 0,
        "before": before,
        "peak": peak[0] - before,
        "seconds": seconds,
        "stages": report.seconds,
        "digest": digest(Path(output)),
    }
    print(json.dumps(found))


def confine(limit: int) -> bool:
    """Put this process into a control group of its own with so much memory."""
    for group, name in (
        (Path(f"/sys/fs/cgroup/memory/larger-{os.getpid()}"), "memory.limit_in_bytes"),
        (Path(f"/sys/fs/cgroup/larger-{os.getpid()}"), "memory.max"),
    ):
        try:
            group.mkdir()
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


def measured(layers: int) -> dict[str, Any]:
    """Both runs."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        size = make(model, layers)
        runs: list[dict[str, Any]] = []
        for weights, allowed in (("files", size // 4), ("memory", 0)):
            command = [sys.executable, __file__, "--child", str(model), str(Path(scratch) / weights), weights]
            done = subprocess.run([*command, str(allowed)], check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(runs[-1], flush=True)
    return {"layers": layers, "bytes": size, "runs": runs}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=44)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child[:3], int(given.child[3]))
        return
    print(measured(given.layers))


if __name__ == "__main__":
    main()
