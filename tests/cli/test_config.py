"""Options in a file, and the file that repeats a run."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from badness import bad_input
from command import run
from faster_pruner.cli.config import HEADER

pytestmark = pytest.mark.usefixtures("quick_latency")


def written(file: Path, **options: object) -> Path:
    """A file of options."""
    lines: list[str] = []
    for name, value in options.items():
        shown = (
            str(value).lower() if isinstance(value, bool) else value if isinstance(value, int | float) else f'"{value}"'
        )
        lines.append(f"{name.replace('_', '-')} = {shown}")
    file.write_text("\n".join(lines))
    return file


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_file_is_as_good_as_typing(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Same bits; what is typed as well counts more; the file that the run wrote gives them again."""
    common = ("--task", "sst2", "--data", data / "sst2", "--no-eval", "--round-to", "2", "--seed", "3")
    code, _, errors = run("prune", checkpoint, *common, "--macs", "0.5", "-o", tmp_path / "typed")
    assert code == 0, errors
    file = written(
        tmp_path / "run.toml",
        model=checkpoint,
        task="sst2",
        data=data / "sst2",
        no_eval=True,
        round_to=2,
        seed=3,
        macs=0.9,
        output=tmp_path / "read",
    )
    code, _, errors = run("prune", "--config", file, "--macs", "0.5")
    assert code == 0, errors
    assert weights(tmp_path / "read") == weights(tmp_path / "typed")
    kept = tmp_path / "typed.toml"
    found = tomllib.loads(kept.read_text())
    assert found == {
        "model": str(checkpoint),
        "macs": "0.5",
        "task": "sst2",
        "data": str(data / "sst2"),
        "no-eval": True,
        "round-to": "2",
        "seed": 3,
        "output": str(tmp_path / "typed"),
    }
    assert kept.read_text().startswith(HEADER)
    code, _, errors = run("prune", "--config", kept, "-o", tmp_path / "again")
    assert code == 0, errors
    assert weights(tmp_path / "again") == weights(tmp_path / "typed")
    # the options of that run are those of its file, with the new output
    assert tomllib.loads((tmp_path / "again.toml").read_text()) == {**found, "output": str(tmp_path / "again")}


def test_a_file_of_somebody_else_stays(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out.toml"
    mine.write_text("[tool]\n")
    options = ("--task", "sst2", "--data", data / "sst2", "--no-eval", "--macs", "0.5")
    assert run("prune", checkpoint, *options, "-o", tmp_path / "out")[0] == 0
    assert mine.read_text() == "[tool]\n"
    mine.unlink()
    mine.mkdir()
    assert run("prune", checkpoint, *options, "-o", tmp_path / "out", "--overwrite")[0] == 0
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mac = 0.5", "do you mean 'macs'"),
        ("zzz = 1", "no option of prune; options: allocation, "),
        ("debug = true", "no option of prune"),
        ("config = 'a'", "no option of prune"),
        ("macs 0.5", "is no TOML"),
        ("[macs]\nshare = 0.5", "must be a text, a number, a list or true or false"),
        ("macs = 'half'", "--macs is 'half'; it must be a share of the dense model"),
        ("calibration-rows = 'many'", "Invalid value for '--calibration-rows'"),
        ("no-eval = 'perhaps'", "Invalid value for '--no-eval'"),
        ("device = 'toaster'\nmacs = 0.5", "toaster"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    checkpoint: Path, data: Path, tmp_path: Path, text: str, said: str
) -> None:
    bad_input(f"config {text!r}")
    file = tmp_path / "run.toml"
    file.write_text(text)
    options = ("--task", "sst2", "--data", data / "sst2", "-o", tmp_path / "out")
    code, shown, errors = run("prune", checkpoint, "--config", file, *options)
    assert code == 2
    assert shown == ""
    assert len(errors.splitlines()) == 1
    assert said in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["none.toml", "."])
def test_a_file_that_is_none(tmp_path: Path, file: str) -> None:
    bad_input(f"config file {file}")
    code, _, errors = run("prune", "--config", tmp_path / file)
    assert code == 2
    assert "cannot be read" in errors
