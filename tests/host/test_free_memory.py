"""Free memory: of the machine, or what a container may still take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from faster_pruner.host import spill

CPU = torch.device("cpu")
GB = 2**30


def write(folder: Path, **files: str | int) -> None:
    """Files of one control group; the first underscore of a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def left(root: Path, own: str) -> list[int]:
    """What is found in made-up control groups."""
    (root / "own").write_text(own)
    return spill._left_in_cgroups(root / "cgroup", root / "own")  # pyright: ignore[reportPrivateUsage]


def test_version_two_counts_every_group_up_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "a" / "b", memory_max=8 * GB, memory_current=3 * GB)
    write(root / "a", memory_max=6 * GB, memory_current=5 * GB, memory_stat=f"anon 7\ninactive_file {2 * GB}")
    write(root, memory_max="max", memory_current=20 * GB)
    assert left(tmp_path, "0::/a/b\n") == [5 * GB, 3 * GB]


def test_version_two_inside_a_container(tmp_path: Path) -> None:
    """A container sees its own group as the root, whatever the path says."""
    write(tmp_path / "cgroup", memory_max=4 * GB, memory_current=1 * GB)
    assert left(tmp_path, "0::/\n") == [3 * GB]
    assert left(tmp_path, "0::/kubepods/pod1/of-the-host\n") == [3 * GB]


def test_version_one(tmp_path: Path) -> None:
    root = tmp_path / "cgroup" / "memory"
    write(
        root / "docker" / "x",
        memory_limit_in_bytes=2 * GB,
        memory_usage_in_bytes=int(1.5 * GB),
        memory_stat=f"total_inactive_file {GB}",
    )
    write(root, memory_limit_in_bytes=9223372036854771712, memory_usage_in_bytes=GB)
    own = "12:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n1:name=systemd:/docker/x\n0::/docker/x\n"
    found = left(tmp_path, own)
    assert min(found) == int(1.5 * GB)
    assert len(found) == 2


@pytest.mark.parametrize(("most", "now"), [("max", 5), ("-1x", 5), (5, "none")])
def test_no_limit_or_a_strange_file_says_nothing(most: str | int, now: str | int, tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "a", memory_max=most, memory_current=now)
    assert left(tmp_path, "0::/a\n") == []
    assert spill._left_in_cgroups(tmp_path, tmp_path / "nothing") == []  # pyright: ignore[reportPrivateUsage]


def test_a_group_that_is_full_has_nothing_left(tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "a", memory_max=GB, memory_current=GB + 5, memory_stat="inactive_file x")
    assert left(tmp_path, "0::/a\n") == [0]


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    without = spill.free_memory(CPU)
    assert without > 0
    monkeypatch.setattr(spill, "_left_in_cgroups", lambda: [3 * GB, 1_000_000, 2 * GB])
    assert spill.free_memory(CPU) == 1_000_000
    assert spill.default_limit(CPU) == 500_000
    monkeypatch.setattr(spill, "_left_in_cgroups", lambda: [1 << 60])
    assert spill.free_memory(CPU) < 1 << 60


def test_file_cache_counts_as_free(tmp_path: Path) -> None:
    """Reading a checkpoint fills it, and the system gives it up for whoever needs memory."""
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       16000000 kB\nMemFree:          200000 kB\nMemAvailable:    9000000 kB\nHuge: 0\n")
    assert spill._left_on_machine(told) == 9_000_000 * 1024  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("text", ["MemFree: 1 kB\n", "MemAvailable: many\n", "nothing\n", None])
def test_without_an_answer_of_linux_others_are_asked(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    pages = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(spill.os, "sysconf", pages.__getitem__)
    assert spill._left_on_machine(tmp_path / "meminfo") == 4_096_000  # pyright: ignore[reportPrivateUsage]
    monkeypatch.delattr(spill.os, "sysconf")
    assert spill._left_on_machine(tmp_path / "meminfo") == 8 * GB  # pyright: ignore[reportPrivateUsage]
