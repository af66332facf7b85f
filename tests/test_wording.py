"""What the library says: it knows nothing of the command line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import faster_pruner

SOURCE = Path(faster_pruner.__file__).parent
FLAG = re.compile(r"--[a-z]")


def library_files() -> list[Path]:
    """All modules but those of the command line."""
    return [
        file
        for file in sorted(SOURCE.rglob("*.py"))
        if file.relative_to(SOURCE).parts[0] not in ("cli", "cli.py", "__main__.py")
    ]


def flags_in(code: str) -> list[str]:
    """String literals, docstrings included, that name a command-line flag."""
    return [
        f"line {node.lineno}: {node.value}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value)
    ]


@pytest.mark.parametrize("file", library_files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_string_of_the_library_names_a_command_line_flag(file: Path) -> None:
    assert flags_in(file.read_text()) == []


def test_flags_are_found_in_every_kind_of_string() -> None:
    assert library_files()
    assert len(flags_in('"""Use --data."""\nf"give {1} or --rows"\n"a -- b"\nx = "--task"')) == 3
