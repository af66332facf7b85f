"""The house rules that no linter knows: who reads what a model returns, who registers hooks, how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import faster_pruner

ROOT = Path(faster_pruner.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 400, 80, 9


def place(file: Path) -> str:
    """A file's path inside the package."""
    return file.relative_to(ROOT).as_posix()


def nodes(folder_left_out: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node of every file, except those of one folder."""
    for file in FILES:
        if not folder_left_out or not place(file).startswith(folder_left_out):
            for node in ast.walk(ast.parse(file.read_text())):
                yield place(file), node


def test_only_objectives_know_what_a_model_returns() -> None:
    found = [where for where, n in nodes("objectives/") if isinstance(n, ast.Attribute) and n.attr == "logits"]
    assert found == []
    words = ("text-classification", "AutoModelForSequenceClassification")
    assert [w for w, n in nodes("objectives/") if isinstance(n, ast.Constant) and n.value in words] == []


def test_no_algorithm_asks_what_kind_a_sublayer_is() -> None:
    """Reports may group by kind; nothing may decide by comparing it with a word."""
    for where, node in nodes():
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = [side.attr for side in sides if isinstance(side, ast.Attribute)]
            words = [side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)]
            assert not ("kind" in names and words), f"{where}:{node.lineno}"


def test_hooks_are_registered_in_two_files() -> None:
    """Beside what looks at a model that no row describes."""
    found = {
        where
        for where, n in nodes("model/detection/")
        if isinstance(n, ast.Attribute) and n.attr.startswith("register_") and n.attr.endswith("hook")
    }
    # shrink: the pre-hook of an argument with one entry per unit is a part of the smaller model
    assert found == {"model/gradients.py", "model/lockstep.py", "model/shrink.py"}


def test_files_and_functions_stay_short() -> None:
    long_files = [place(file) for file in FILES if len(file.read_text().splitlines()) > LONGEST_FILE]
    assert long_files == []
    for where, node in nodes():
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{where}: {node.name}"


def test_functions_take_few_arguments() -> None:
    """Values that go together travel together; commands list what a person can type."""
    for where, node in nodes("cli/"):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            own = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
            assert len(own) <= MOST_ARGUMENTS, f"{where}: {node.name} takes {len(own)}"


def test_the_import_is_light() -> None:
    """Nothing heavy is loaded, and what we add over torch and transformers is far below 0.3 s."""
    script = (
        "import sys, time\n"
        "started = time.perf_counter()\n"
        "import faster_pruner\n"
        "seconds = time.perf_counter() - started\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'sklearn', 'typer', 'rich'} & set(sys.modules)\n"
        "import torch, transformers\n"
        "started = time.perf_counter()\n"
        "from faster_pruner import prune\n"
        "print(sorted(heavy), [m for m in sys.modules if m.startswith('transformers.models.bert.modeling')], seconds)\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    heavy, models, seconds = printed.strip().rsplit(" ", 2)
    assert heavy == "[]"
    assert models == "[]"
    assert float(seconds) < 0.3


def test_every_public_name_is_there() -> None:
    for name in faster_pruner.__all__:
        assert getattr(faster_pruner, name) is not None
        assert name in dir(faster_pruner)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = faster_pruner.nonsense
