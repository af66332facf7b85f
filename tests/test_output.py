"""The output folder is checked first and replaced as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faster_pruner.errors import OutputError
from faster_pruner.output import check_output, replacing


def test_check_output(tmp_path: Path) -> None:
    check_output(tmp_path / "new", overwrite=False, bytes_needed=10)
    check_output(tmp_path / "a" / "b" / "new", overwrite=False, bytes_needed=10)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file", overwrite=True, bytes_needed=10)
    full = tmp_path / "full"
    full.mkdir()
    check_output(full, overwrite=False, bytes_needed=10)
    (full / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(full, overwrite=False, bytes_needed=10)
    with pytest.raises(OutputError, match="holds no checkpoint"):
        check_output(full, overwrite=True, bytes_needed=10)
    with pytest.raises(OutputError, match="not enough disk space"):
        check_output(tmp_path / "new", overwrite=False, bytes_needed=10**18)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_a_failed_save_leaves_what_was_there(tmp_path: Path, error: Any) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected), replacing(target, overwrite=True) as staging:
        (staging / "config.json").write_text("new")
        raise error
    assert (target / "config.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(expected), replacing(tmp_path / "a" / "b", overwrite=False) as staging:
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_good_save_replaces_and_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        with replacing(target, overwrite=True) as staging:
            (staging / "config.json").write_text(text)
    assert (target / "config.json").read_text() == "second"
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    assert target.stat().st_mode & 0o777 == tmp_path.joinpath("deep").stat().st_mode & 0o777
    with pytest.raises(OutputError, match="meanwhile"), replacing(target, overwrite=False):
        pass
    assert (target / "config.json").read_text() == "second"
