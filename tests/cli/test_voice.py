"""How a command speaks: JSON alone, nothing, or lines that show it is alive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import faster_pruner.progress as progress
from command import run

pytestmark = pytest.mark.usefixtures("quick_latency")


def strict(text: str) -> Any:
    """Strict JSON, and nothing else."""

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_figures_as_json(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Of every command that shows figures."""
    rows = ("--task", "sst2", "--data", data / "sst2")
    code, shown, _ = run("prune", checkpoint, *rows, "--macs", "0.5", "-o", tmp_path / "out", "--json")
    assert code == 0
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    del kept["files"]
    assert strict(shown) == kept
    code, shown, _ = run("evaluate", tmp_path / "out", *rows, "--json")
    assert code == 0
    assert strict(shown)["validation"]["metrics"].keys() == kept["after"]["validation"]["metrics"].keys()
    code, shown, _ = run("sweep", checkpoint, *rows, "--macs", "0.7,0.5", "--no-eval", "--json")
    assert code == 0
    assert [point["budget"] for point in strict(shown)["points"]] == ["macs-0.7", "macs-0.5"]
    code, shown, _ = run("inspect", checkpoint, "--json")
    assert code == 0
    assert strict(shown)["stacks"][0]["layers"] > 0
    code, shown, _ = run("bench", checkpoint, tmp_path / "out", "--batch", "1", "--seq", "8", "--json")
    assert code == 0
    assert [timing["model"] for timing in strict(shown)] != []
    code, shown, _ = run("report", tmp_path / "out", "--json")
    assert code == 0
    assert strict(shown) == [str(tmp_path / "out" / "report.html")]
    code, shown, _ = run("prune", checkpoint, *rows, "--macs", "7", "-o", tmp_path / "no", "--json")
    assert (code, shown) == (2, "")


def test_export_as_json(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, shown, _ = run("export", checkpoint, "-o", tmp_path / "model.onnx", "--json")
    assert code == 0
    steps = strict(shown)
    assert steps[0]["name"] == "PyTorch"
    assert steps[1]["file"] == str(tmp_path / "model.onnx")
    assert all("x" in shape for shape in steps[1]["ms"])


def test_quiet_says_nothing_but_errors(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    rows = ("--task", "sst2", "--data", data / "sst2", "--no-eval")
    found = run("prune", checkpoint, *rows, "--macs", "0.5", "-o", tmp_path / "out", "--quiet")
    assert found == (0, "", "")
    code, shown, errors = run("prune", checkpoint, *rows, "--macs", "0.5", "-o", tmp_path / "out", "-q")
    assert (code, shown) == (2, "")
    assert "is not empty" in errors


def test_a_long_step_is_still_at_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage without steps says so as often as one with steps; nothing is said after its end."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.05)
    lines = progress.PlainLines()
    lines.start("solving", None)
    time.sleep(0.3)
    lines.end(0.3)
    lines.start("counting", 4)
    lines.step()
    time.sleep(0.3)
    lines.end(0.3)
    time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "solving ..."
    assert said.count("solving: 0 s") >= 2
    assert any(line.startswith("counting: 1 of 4, 0 s, about ") and line.endswith(" s left") for line in said)
    assert said[-1] == "counting: done in 0.3 s"


def script() -> str:
    """The installed command."""
    found = shutil.which("faster-pruner", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("the command is not installed beside this interpreter")
    return found


def with_settings(*arguments: str, **settings: str) -> str:
    """What the command prints where these environment variables are set."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [script(), *arguments], check=False, capture_output=True, text=True, env={**inherited, **settings}
    )
    return done.stdout


def test_no_color() -> None:
    """Where colours are forced there are some, and with NO_COLOR none."""
    assert "\x1b[3" in with_settings("prune", "--help", FORCE_COLOR="1")
    assert "\x1b[3" not in with_settings("prune", "--help", FORCE_COLOR="1", NO_COLOR="1")


def test_shells_complete_commands_and_options() -> None:
    def completed(words: str, place: int) -> list[str]:
        found = with_settings(_FASTER_PRUNER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(place))
        return found.split()

    assert completed("faster-pruner sw", 1) == ["sweep"]
    assert "--max-drop" in completed("faster-pruner prune --max", 2)
    assert "--install-completion" in run("--help")[1]
