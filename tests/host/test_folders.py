"""The output folder is checked first and replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faster_pruner.errors import OutputError
from faster_pruner.host import folders, places, temporary
from faster_pruner.host.folders import Output, as_output, replacing
from faster_pruner.host.places import check_apart, check_folder

fcntl = pytest.importorskip("fcntl")


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def save(target: Path, text: str = "new", *, overwrite: bool = True) -> None:
    """Write a checkpoint of one file."""
    with replacing(target, overwrite=overwrite) as staging:
        (staging / "config.json").write_text(text)
        (staging / "result.json").write_text(json.dumps({"files": ["config.json", "result.json"]}))


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_check_folder(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", overwrite=False)
    check_folder(tmp_path / "a" / "b" / "new", overwrite=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "file", overwrite=True)
    full = tmp_path / "full"
    full.mkdir()
    check_folder(full, overwrite=False)
    (full / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"did not write \('precious.txt'\)") as caught:
            check_folder(full, overwrite=overwrite)
        assert caught.value.option == ""
    save(tmp_path / "ours")
    with pytest.raises(OutputError, match="is not empty; choose another, or ask for it to be replaced") as caught:
        check_folder(tmp_path / "ours", overwrite=False)
    assert caught.value.option == "overwrite"
    check_folder(tmp_path / "ours", overwrite=True)


def test_a_folder_inside_a_file_is_refused_before_and_after_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(OutputError, match="cannot lie inside .*file', which is a file"):
            check_folder(target, overwrite=False)
        with pytest.raises(OutputError, match=r"cannot write .*out': "):
            save(target)
    assert (tmp_path / "file").read_text() == "x"
    assert names(tmp_path) == ["file"]


def test_a_parent_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot write into"):
        check_folder(tmp_path / "a" / "out", overwrite=False)


def test_an_output_says_where_a_run_writes(tmp_path: Path) -> None:
    output = Output(folder=str(tmp_path / "out"), overwrite=True)
    assert output.path == tmp_path / "out"
    assert as_output(output) is output
    assert as_output("somewhere") == Output(folder="somewhere", overwrite=False)
    assert as_output(None).path is None
    as_output(None).check()
    as_output(None).check_space(folder=10**18)
    save(tmp_path / "out")
    output.check()
    with pytest.raises(OutputError, match="is not empty"):
        Output(folder=output.folder).check()
    output.check_space(folder=10)
    for full in ({"folder": 10**18}, {"statistics": 10**18}):
        with pytest.raises(OutputError, match="not enough disk space"):
            Output(folder=tmp_path / "out", statistics=tmp_path / "kept").check_space(**full)


def test_statistics_are_kept_apart_from_the_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that is replaced would take them with it; and they themselves replace nothing."""
    for inside in ("out", "out/kept"):
        both = Output(folder=tmp_path / "out", overwrite=True, statistics=tmp_path / inside)
        with pytest.raises(OutputError, match="none lies inside the other"):
            both.check()
    Output(folder=tmp_path / "out", statistics=tmp_path / "kept").check()
    save(tmp_path / "kept")
    for folder in (None, tmp_path / "out"):
        with pytest.raises(OutputError, match="is not empty"):
            Output(folder=folder, overwrite=True, statistics=tmp_path / "kept").check()


def test_folders_that_are_both_written_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    a = tmp_path / "a"
    for one, other in (
        (a, a),
        (a, tmp_path / "b" / ".." / "a"),
        (a, Path("a")),
        (a, a / "deep" / "er"),
        (tmp_path / "real", tmp_path / "link"),
        (tmp_path / "link" / "x", tmp_path / "real"),
    ):
        for first, second in ((one, other), (other, one)):
            with pytest.raises(OutputError, match="both written: give two folders of which none lies inside the other"):
                check_apart(first, second)
    check_apart(a, tmp_path / "ab")
    check_apart(a / "x", a / "y")
    check_apart(Path("a"), tmp_path / "link" / "a")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_a_failed_save_leaves_what_was_there(tmp_path: Path, error: Any) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    finished = list(folders.finished)
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected), replacing(target, overwrite=True) as staging:
        (staging / "config.json").write_text("new")
        raise error
    assert (target / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]
    with pytest.raises(expected), replacing(tmp_path / "a" / "b", overwrite=False) as staging:
        raise error
    assert names(tmp_path) == ["out"]
    assert folders.finished == finished


@pytest.mark.parametrize("system", [True, False])
def test_a_good_save_replaces_and_cleans_up(tmp_path: Path, system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a system that can exchange two folders in one step."""
    if not system:
        monkeypatch.setattr(folders, "_system_exchange", lambda one, other: False)
    monkeypatch.setattr(folders, "finished", [])
    target = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        save(target, text)
    assert (target / "config.json").read_text() == "second"
    assert names(target.parent) == ["out"]
    with pytest.raises(OutputError, match=r"meanwhile; the result lies in '.*out-1'"):
        save(target, "third", overwrite=False)
    assert (target / "config.json").read_text() == "second"
    assert (target.with_name("out-1") / "config.json").read_text() == "third"
    assert folders.finished == [target, target, target.with_name("out-1")]


def test_what_is_saved_may_be_read_as_the_user_wants_it(tmp_path: Path) -> None:
    """Permissions follow the umask, of folders inside, too."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "out", overwrite=False) as staging:
            (staging / "inside").mkdir()
            (staging / "inside" / "file").write_text("x")
            (staging / "config.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))}
    assert modes == {"out": 0o750, "inside": 0o750, "file": 0o640, "config.json": 0o640}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """A process that is still writing keeps its folder; when it is killed, the next one beside it clears up."""
    target = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from faster_pruner.host.folders import replacing\n"
        "with replacing(Path(sys.argv[1]), overwrite=True) as staging:\n"
        "    (staging / 'weights').write_text('half'); print(staging.name, flush=True); time.sleep(60)"
    )
    writing = subprocess.Popen([sys.executable, "-c", code, target], stdout=subprocess.PIPE, text=True)
    try:
        assert writing.stdout is not None
        partial = writing.stdout.readline().strip()
        save(target)
        assert names(tmp_path) == [partial, "out"]
    finally:
        writing.kill()
        writing.communicate()
    assert names(tmp_path) == [partial, "out"]
    save(target)
    assert names(tmp_path) == ["out"]


def test_what_others_still_need_is_kept(tmp_path: Path) -> None:
    """Folders of living processes, locked ones (of processes whose number means nothing here), and other folders'."""
    dead = dead_process()
    kept = [
        f".out.{os.getpid()}-abc.partial",
        f".out.{dead}-locked.partial",
        f".out.more.{dead}-abc.partial",
        f".out2.{dead}-abc.partial",
        f"out.{dead}-abc.partial",
        ".out.mine.partial",
        f".out.{dead}-abc.old",
    ]
    gone = [f".out.{dead}-abc.partial", f".out.{dead}-x_1.partial"]
    for name in (*kept, *gone):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    handle = os.open(tmp_path / kept[1], os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        save(tmp_path / "out")
        assert names(tmp_path) == sorted([*kept, "out"])
    finally:
        os.close(handle)
    save(tmp_path / "out")
    assert names(tmp_path) == sorted([*kept[:1], *kept[2:], "out"])


def test_a_folder_is_locked_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process on another machine, or in another container, looks dead from here."""
    monkeypatch.setattr(temporary, "_alive", lambda process: False)
    with replacing(tmp_path / "out", overwrite=True) as staging:
        (staging / "config.json").write_text("of the first")
        save(tmp_path / "out", "of the second")
        assert staging.is_dir()
    assert (tmp_path / "out" / "config.json").read_text() == "of the first"
    assert names(tmp_path) == ["out"]


def test_names_are_no_patterns(tmp_path: Path) -> None:
    dead = dead_process()
    for name in ("a[1]*", "a1x"):
        (tmp_path / f".{name}.{dead}-abc.partial").mkdir()
    save(tmp_path / "a[1]*")
    assert names(tmp_path) == sorted([f".a1x.{dead}-abc.partial", "a[1]*"])
