"""Every command and every Python example of README and docs/ runs, as it stands, on tiny models.

A page's blocks run in their order, in a folder of the page's own where the models and rows that it names lie
(`documented.THINGS`). What names anything else fails here: add it there. What a command is about to write is removed
first, as pages show alternatives with one name.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from torch import nn

import documented
import harness
import sentences
import tiny
from command import run
from documented import PAGES, ROOT, SHELL, Block, blocks_of, commands_of
from faster_pruner.api import demo, smallest
from faster_pruner.cli import app
from faster_pruner.model.table import FAMILIES
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.runtimes import comparison
from machine import Machine

pytest.importorskip("sentence_transformers")
pytest.importorskip("onnxruntime")

# What other words a command may begin with, and what is tested of it.
MAKE, PIP, PYTHON = "make", "pip", "python"
# Scripts, with a part of their arguments, that are run on tiny models; of the others, which take hours, the arguments
# are read.
WHOLE = ("benchmarks/accuracy.py --task sst2 --methods default --budgets 0.5", "benchmarks/readme_table.py")
# Languages of blocks that are no input of anything: output, layouts of folders, formulas.
SHOWN = ("", "text")
_WRITES = ("-o", "--output", "--keep-statistics", "--plot", "--csv", "--json-file")
_PYTHON_WRITES = re.compile(r'(?:output=|save\(|folder=|statistics=)"([\w.-]+)"')
_INLINE = re.compile(r"`([^`\n]+)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> documented.World:
    """Makes what pages speak of."""
    return documented.World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _small_and_offline(monkeypatch: pytest.MonkeyPatch, quick_latency: None, world: documented.World) -> None:
    """The hub and the demo have what the tests make; timings are few, and nothing is compiled."""
    import datasets
    import torch

    monkeypatch.setattr(datasets, "load_dataset", documented.load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train", "validation"])
    monkeypatch.setattr(comparison, "_FEWEST_TURNS", 3)
    monkeypatch.setattr(comparison, "_SECONDS_PER_SHAPE", 0.0)
    monkeypatch.setattr(demo, "encoder_folder", lambda: world.made("all-MiniLM-L6-v2"))
    texts = [text for text in sentences.make_texts(200) if len(text.split()) > 3]
    monkeypatch.setattr(demo, "collect_docstrings", lambda: {"alpha": texts[::2], "beta": texts[1::2]})
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    harness.install(monkeypatch)


def _run_python(block: Block, page: Path, folder: Path) -> None:
    """An example, as if it were a script of its own."""
    for name in _PYTHON_WRITES.findall(block.text):
        _remove(folder, name)
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    exec(code, {"__name__": "__main__"})


def _remove(folder: Path, name: str) -> None:
    """What a former block has left under a name; never what the page is given."""
    place = folder / name
    if name.rstrip("/") not in documented.THINGS and place.exists():
        (shutil.rmtree if place.is_dir() else Path.unlink)(place)


def _run_command(words: Sequence[str], folder: Path) -> str:
    """A command line; returns what is wrong with it, or nothing."""
    if words[0] == "faster-pruner":
        for flag, value in pairwise(words):
            if flag in _WRITES:
                _remove(folder, value)
        code, out, err = run(*words[1:])
        assert "Traceback" not in out + err
        return "" if code == 0 else err.strip().splitlines()[-1]
    if words[0] == PYTHON:
        return _run_script(words[1:], folder, whole=" ".join(words[1:]).startswith(WHOLE))
    if words[0] == PIP:
        return _extras(words)
    if words[0] == MAKE:
        made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if set(words[1:]) <= set(made) else "there is no such target"
    return "" if " ".join(words) in ("git clone <this repository>", "cd faster-pruner") else "nobody knows it"


def _extras(words: Sequence[str]) -> str:
    """What is wrong with extras that pip is asked for."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name for word in words for found in re.findall(r"\[(.*?)\]", word) for name in found.split(",")}
    return "" if wanted <= set(known) else f"there are no extras {sorted(wanted - set(known))}"


class _Parsed(Exception):
    """A script has understood its arguments."""


_parse = argparse.ArgumentParser.parse_args


def _parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> None:
    _parse(parser, *given)
    raise _Parsed


@contextmanager
def _as_script(words: Sequence[str], script: Path, *, whole: bool) -> Iterator[None]:
    """As python would start it; the modules beside it are forgotten afterwards."""
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        patch.syspath_prepend(str(script.parent))
        if not whole:
            patch.setattr(argparse.ArgumentParser, "parse_args", _parse_and_stop)
        try:
            yield
        finally:
            for name in {*sys.modules} - before:
                if (script.parent / f"{name}.py").is_file():
                    del sys.modules[name]


def _run_script(words: Sequence[str], folder: Path, *, whole: bool) -> str:
    """What is wrong with a script of the copied repository, or, where it is not to do all its work, its arguments."""
    script = folder / words[0]
    if not script.is_file():
        return "there is no such script"
    try:
        with _as_script(words, script, whole=whole):
            runpy.run_path(str(script), run_name="__main__")
    except (_Parsed, SystemExit) as ended:
        return f"its arguments are not understood ({ended})" if isinstance(ended, SystemExit) else ""
    return "" if whole else "it takes no arguments"


def _copy_benchmarks(folder: Path) -> None:
    """The scripts, and what they read and write: their results, the pages, and the tiny models in place of the real."""
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copyfile(ROOT / "README.md", folder / "README.md")
    for task in ("sst2", "mrpc"):
        tiny.save_checkpoint(folder / "shared" / "models" / f"minilm-l6-{task}")
        tiny.save_rows(folder / "shared" / "data" / "glue", task)


def _named(text: str, languages: Sequence[str], pages: Sequence[Path]) -> list[Path]:
    """Pages that have such blocks."""
    return [
        page for page in pages if any(block.language in languages and text in block.text for block in blocks_of(page))
    ]


def test_every_block_is_of_a_known_kind() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in (*SHELL, *SHOWN, "python"), f"{page.name}:{block.line}"
            assert block.language or "faster-pruner " not in block.text, f"{page.name}:{block.line} shows a command"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", _named("", (*SHELL, "python"), PAGES), ids=lambda page: page.stem)
def test_what_a_page_shows_runs(
    page: Path, world: documented.World, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # there half of the weights take half of the time, and no model is worse than the dense one
    monkeypatch.setattr(smallest, "predict_rows", lambda model, *rest: predict_rows(first.setdefault(0, model), *rest))
    first: dict[int, nn.Module] = {}
    monkeypatch.chdir(tmp_path)
    world.furnish(tmp_path, page.read_text())
    if _named("benchmarks/", SHELL, [page]):
        _copy_benchmarks(tmp_path)
        monkeypatch.setenv("FASTER_PRUNER_SHARED", str(tmp_path / "shared"))
    wrong: list[str] = []
    for block in blocks_of(page):
        if block.language == "python":
            _run_python(block, page, tmp_path)
        for line, words in commands_of(block):
            said = _run_command(words, tmp_path)
            wrong += [f"{page.name}:{line}: {' '.join(words)}: {said}"] if said else []
    assert wrong == []


def _saved(words: Sequence[str]) -> bool:
    """Whether a script computes nothing, and writes a page from the figures that were saved."""
    return "show" in words[-1] or words[-1] == "benchmarks/readme_table.py"


@pytest.mark.filterwarnings("ignore")
def test_tables_of_the_pages_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scripts write from the saved figures is what is there."""
    monkeypatch.chdir(tmp_path)
    _copy_benchmarks(tmp_path)
    commands = [words for block in blocks_of(ROOT / "docs" / "reproduce.md") for _, words in commands_of(block)]
    writing = [words[1:] for words in commands if words[0] == PYTHON and _saved(words)]
    assert len(writing) == 21
    for words in writing:
        assert _run_script(words, tmp_path, whole=True) == "", words
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert file.read_text() == (tmp_path / file.relative_to(ROOT)).read_text(), file.name


def _flags() -> dict[str, set[str]]:
    """Command -> its options."""
    group: Any = typer.main.get_command(app)
    return {
        name: {
            "--help",
            *(flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)),
        }
        for name, command in group.commands.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_commands_in_the_text_exist(page: Path) -> None:
    known = _flags()
    everywhere = set().union(*known.values()) | {"--version"} | _of_scripts()
    for said in _INLINE.findall(page.read_text()):
        words = said.split()
        flags = set(_OPTION.findall(said))
        if words[:1] == ["faster-pruner"] and len(words) > 1:
            assert words[1] in known, said
            assert flags <= known[words[1]], said
        assert flags <= everywhere, said


def _of_scripts() -> set[str]:
    """Options that the benchmarks take."""
    texts = [file.read_text() for file in (ROOT / "benchmarks").glob("*.py")]
    return {flag for text in texts for flag in re.findall(r'add_argument\("(--[\w-]+)"', text)}


def test_a_command_of_nobody_is_noticed(
    world: documented.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (
        "faster-pruner inspect somebody/else",
        "faster-pruner prune MODEL --task sst2 --macs half -o smaller",
        "python benchmarks/accuracy.py --nonsense",
        "python benchmarks/nonsense.py",
        "pip install '.[nonsense]'",
        "make nonsense",
        "rm -r smaller",
    )
    world.furnish(tmp_path, "MODEL")
    _copy_benchmarks(tmp_path)
    for line in lines:
        assert _run_command(shlex.split(line), tmp_path), line


def test_the_family_that_the_page_describes_is_that_of_the_table() -> None:
    [example] = [block for block in blocks_of(ROOT / "docs" / "families.md") if block.language == "python"]
    found: dict[str, Any] = {}
    exec(example.text, found)
    assert found["family"] == FAMILIES["bert"]
