"""Nobody but faster-pruner speaks on standard error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Stages as they begin and end.
_OURS = re.compile(r"[a-z ]+ \.\.\.|[a-z ]+: done in [0-9.]+ s|[a-z ]+: \d+/\d+.*|faster-pruner: .*")


def test_prune_is_quiet_even_where_layers_are_emptied(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    command = ["prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.02", "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "faster_pruner", *map(str, command)], capture_output=True, text=True, check=True
    )
    lines = [line for line in re.split(r"[\n\r]", done.stderr) if line.strip()]
    assert lines
    assert [line for line in lines if not _OURS.fullmatch(line.strip())] == []
    assert "nothing is left of any sublayer" in " ".join(done.stdout.split())
