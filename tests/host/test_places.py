"""What is never written over: every bad output is one clear line, said before any work, and nothing changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from badness import bad_input
from faster_pruner.errors import OptionError, OutputError
from faster_pruner.host import folders
from faster_pruner.host.folders import Output, replacing
from faster_pruner.host.marks import is_our_file, names_in, strangers
from faster_pruner.host.places import check_exports, check_file, check_folder, public_name

# Names of files that people keep beside a checkpoint: none of them may vanish with it.
PRECIOUS = (
    "notes.txt",
    ".git/HEAD",
    ".env",
    "runs/events.out",
    "training_args.bin",
    "optimizer.pt",
    "pytorch_model.bin",
    "model.safetensors.bak",
    "adapter_model.safetensors",
    "train.jsonl",
    "checkpoint-500/model.safetensors",
    "config.json.orig",
    "README.md~",
    "model.onnx",
    "model.xml",
    "model.bin",
    "empty folder/",
    "readme.md",
    "modeling_other.py",
    "\N{SNOWMAN}.txt",
)


def released(folder: Path) -> Path:
    """A folder as 0.1.0 wrote it: without a list."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"faster_pruner": {"format": 2, "sizes": {}}}))
    for name in ("result.json", "masks.json", "tokenizer.json", "generation_config.json"):
        (folder / name).write_text("{}")
    for name in ("README.md", "modeling_faster_pruner.py", "model-00001-of-00002.safetensors", "vocab.txt"):
        (folder / name).write_text("x")
    return folder


def listed(folder: Path) -> Path:
    """A folder as it is written now."""
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    (folder / "result.json").write_text(json.dumps({"files": ["model.safetensors", "result.json"]}))
    return folder


def add(folder: Path, name: str) -> None:
    """Put a stranger's file, or folder, into a folder."""
    place = folder / name
    if name.endswith("/"):
        place.mkdir()
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("mine")


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder, with its contents."""
    return {name: (folder / name).read_text() if (folder / name).is_file() else "" for name in names_in(folder)}


@pytest.mark.parametrize("make", [released, listed])
def test_folders_that_we_wrote_may_be_replaced(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    assert strangers(folder) == []
    check_folder(folder, overwrite=True)


@pytest.mark.parametrize("name", PRECIOUS)
@pytest.mark.parametrize("make", [released, listed])
def test_whatever_else_lies_there_is_named_and_stays(make: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    add(folder, name)
    before = tree(folder)
    bad_input(f"output: {make.__name__}, with {name}")
    with pytest.raises(OutputError, match="did not write") as refused:
        check_folder(folder, overwrite=True)
    assert repr(name.split("/")[0])[:-1] in str(refused.value)
    with pytest.raises(OutputError, match="meanwhile"), replacing(folder, overwrite=True) as staging:
        (staging / "model.safetensors").write_text("new")
    assert tree(folder) == before
    # what was finished is there, too
    assert (tmp_path / "out-1" / "model.safetensors").read_text() == "new"


@pytest.mark.parametrize("name", PRECIOUS)
def test_a_folder_of_somebody_else_is_never_replaced(name: str, tmp_path: Path) -> None:
    for with_config in (False, True):
        folder = tmp_path / f"folder{with_config}"
        folder.mkdir()
        add(folder, name)
        if with_config:
            (folder / "config.json").write_text('{"model_type": "bert"}')
        bad_input(f"output: somebody's folder with {name}, config {with_config}")
        with pytest.raises(OutputError, match="did not write"):
            check_folder(folder, overwrite=True)


@pytest.mark.parametrize("content", ["", "[", "[]", "null", '{"files": 3}', '{"files": {}}', "\x00", "[" * 100_000])
def test_a_result_that_is_not_ours_marks_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text(content)
    bad_input(f"output: result.json {content[:20]!r}")
    assert strangers(tmp_path / "out") == ["result.json"]


PLACES: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "the root": lambda at: (Path("/"), "working directory or a parent"),
    "the working directory": lambda at: (Path(), "working directory"),
    "above the working directory": lambda at: (Path(".."), "or a parent"),
    "the home": lambda at: (at / "home", "home directory"),
    "above the home": lambda at: (at, "or a parent"),
    "a link to the home": lambda at: (at / "to-home", "home directory"),
    "the input": lambda at: (at / "model", "which is read"),
    "the input with dots": lambda at: (at / "data" / ".." / "model", "which is read"),
    "inside the input": lambda at: (at / "model" / "pruned", "which is read"),
    "deep inside the input": lambda at: (at / "model" / "a" / "b" / "c", "which is read"),
    "around the input": lambda at: (at / "deep", "which is read"),
    "a link to the input": lambda at: (at / "to-model", "which is read"),
    "inside a link to the input": lambda at: (at / "to-model" / "x", "which is read"),
    "the data": lambda at: (at / "data", "whose rows are read"),
    "a file": lambda at: (at / "file", "is a file"),
    "a link to a file": lambda at: (at / "to-file", "is a file"),
    "below a file": lambda at: (at / "file" / "out", "which is a file"),
    "deep below a file": lambda at: (at / "file" / "a" / "b", "which is a file"),
    "below a link to a file": lambda at: (at / "to-file" / "a", "which is a file"),
    "a device": lambda at: (Path("/dev/null"), "is a file"),
    "a name of 256 bytes": lambda at: (at / ("n" * 256), "output"),
    "a name that leaves no room": lambda at: (at / ("n" * 250), "at most"),
    "a long name in another script": lambda at: (at / ("\N{SNOWMAN}" * 90), "output"),
    "a long name of a parent": lambda at: (at / ("n" * 300) / "out", "output"),
    "a path of 5000 bytes": lambda at: (at.joinpath(*["n" * 100] * 50), "output"),
    "a zero byte": lambda at: (at / "a\0b", "no path that can be written"),
    "half a character": lambda at: (at / "a\ud800", "no path that can be written"),
    "a link to itself": lambda at: (at / "loop", "output"),
    "a mounted disk": lambda at: (Path("/proc"), "a disk is mounted"),
}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, rows, a home, a working directory, and links to them."""
    for name in ("model", "data", "home", "work", "deep/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    for link, target in (("to-model", "model"), ("to-home", "home"), ("to-file", "file"), ("loop", "loop")):
        (tmp_path / link).symlink_to(tmp_path / target)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_are_never_written(what: str, overwrite: bool, scene: Path) -> None:
    place, message = PLACES[what](scene)
    before = names_in(scene)
    output = Output(folder=place, overwrite=overwrite)
    bad_input(f"output: {what}, overwrite {overwrite}")
    with pytest.raises(OutputError, match=message) as refused:
        output.check(reads=[scene / "model", scene / "deep" / "model", "somebody/on-the-hub"], rows=scene / "data")
    assert "\n" not in str(refused.value)
    bad_input(f"statistics: {what}, overwrite {overwrite}")
    with pytest.raises(OutputError, match=message):
        Output(statistics=place, overwrite=overwrite).check(
            reads=[scene / "model", scene / "deep" / "model"], rows=scene / "data"
        )
    assert names_in(scene) == before


def test_statistics_replace_nothing_and_do_not_say_that_they_could(tmp_path: Path) -> None:
    listed(tmp_path / "kept")
    with pytest.raises(OutputError, match="statistics replace nothing") as refused:
        Output(statistics=tmp_path / "kept", overwrite=True).check()
    assert refused.value.option == ""
    assert "ask" not in str(refused.value)


@pytest.mark.parametrize("given", [3, 1.5, object(), [], {}, b"out", True])
def test_what_is_no_path_is_refused(given: object) -> None:
    bad_input(f"output: {type(given).__name__}")
    for field in ("folder", "statistics"):
        with pytest.raises(OptionError, match="it must be str or Path or None"):
            Output(**{field: given})  # pyright: ignore[reportArgumentType]


def test_ordinary_places_are_fine(scene: Path) -> None:
    for place in (
        Path("out"),
        scene / "new" / "deep",
        scene / "home" / "out",
        scene / ("n" * 200),
        scene / "work" / "x",
        scene / "data" / "out",
    ):
        Output(folder=place).check(reads=[scene / "model", "somebody/on-the-hub"], rows=scene / "data")


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    for there in (False, True):
        target, link = tmp_path / f"target{there}", tmp_path / f"link{there}"
        if there:
            listed(target)
        link.symlink_to(target)
        check_folder(link, overwrite=True)
        with replacing(link, overwrite=True) as staging:
            (staging / "new").write_text("x")
        assert link.is_symlink()
        assert names_in(target) == ["new"]
    (tmp_path / "parent").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    listed(tmp_path / "real" / "out")
    with replacing(tmp_path / "parent" / "out", overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert names_in(tmp_path / "real") == ["out", "out/new"]


def test_an_interruption_right_after_the_swap_knows_that_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "finished", [])
    original = folders._put

    def interrupted(staging: Path, target: Path, *, overwrite: bool) -> bool:
        original(staging, target, overwrite=overwrite)
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "_put", interrupted)
    listed(tmp_path / "old")
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / name, overwrite=True) as staging:
            (staging / "new").write_text("x")
        assert folders.finished[-1] == tmp_path / name
        assert names_in(tmp_path / name) == ["new"]


_WRITER = """
import sys, json
from pathlib import Path
from faster_pruner.errors import OutputError
from faster_pruner.host.folders import replacing
folder, overwrite, text = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
try:
    with replacing(folder, overwrite=overwrite) as staging:
        for name in ("one", "two"): (staging / name).write_text(text)
        (staging / "result.json").write_text(json.dumps({"files": ["one", "two", "result.json"]}))
        print("ready", flush=True); sys.stdin.readline()
except OutputError as error:
    print(error); sys.exit(2)
"""


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_two_writers_of_one_output_leave_one_of_two_complete_folders(
    overwrite: bool, empty: bool, tmp_path: Path
) -> None:
    """Nothing is lost: without being asked to replace, the slower one's result lies beside."""
    folder = tmp_path / "out"
    if empty:
        folder.mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder), str(overwrite), text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for text in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    said = [writer.communicate()[0] for writer in writers]
    assert sorted(writer.returncode for writer in writers) == ([0, 0] if overwrite else [0, 2]), said
    contents = [tree(place) for place in sorted(tmp_path.iterdir())]
    assert len(contents) == (1 if overwrite else 2)
    assert all(content["one"] == content["two"] for content in contents)
    if not overwrite:
        assert {content["one"] for content in contents} == {"a", "b"}
        assert any("the result lies in" in text for text in said)


@pytest.mark.parametrize("content", [b"", b"mine", b"\xff" * 100, b"\x08\x0a\x12", b"\x72\xff\xff\x03", b"\x80" * 20])
@pytest.mark.parametrize("name", ["x.onnx", "x.onnx.data", "x.xml", "x.bin", "x.int8.onnx", "model.safetensors"])
def test_files_that_are_no_exports_of_ours_stay(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    bad_input(f"export: over {name} of {content[:5]!r}")
    assert not is_our_file(tmp_path / name)
    with pytest.raises(OutputError, match="is not replaced"):
        check_exports([tmp_path / name])


@pytest.mark.parametrize("what", ["a folder", "below a file", "no parent", "a long name", "a zero byte"])
def test_files_that_cannot_be_written(what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    places = {
        "a folder": tmp_path,
        "below a file": tmp_path / "file" / "x",
        "no parent": tmp_path / "none" / "x",
        "a long name": tmp_path / ("n" * 300),
        "a zero byte": tmp_path / "a\0",
    }
    bad_input(f"file: {what}")
    with pytest.raises(OutputError):
        check_file(places[what], parent_exists=True)


def test_names_that_others_read_tell_nothing_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name(str(tmp_path / "models" / "mine")) == "mine"
    assert public_name("models/mine") == "mine"
    assert public_name("models/mine/") == "mine"
    assert public_name(".") == tmp_path.name
    assert public_name("/gone/since/then") == "then"
    assert public_name("a/b/c") == "c"
    assert public_name("somebody/model") == "somebody/model"
    assert public_name("bert-base") == "bert-base"
    assert os.sep not in public_name(str(tmp_path))
