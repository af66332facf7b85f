"""A recovery that goes on where another one was interrupted ends with the same bits, whatever the model and place."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import tiny
from cases import batch_of, inputs_of
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import OutputError
from faster_pruner.host.working import WorkingFolder, place_of, working
from faster_pruner.method import algorithm, recovery
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Pruned, Subject
from faster_pruner.method.journal_on_disk import JournalOnDisk, RoundOnDisk
from faster_pruner.model.lockstep import Lockstep
from faster_pruner.objectives.classification import CLASSIFICATION
from faster_pruner.options import (
    PRESETS,
    CalibrationOptions,
    Descent,
    Method,
    PrecisionName,
    SolverOptions,
    Weights,
)

DEFAULT = PRESETS["default"]
EXACT = SolverOptions(name="cholesky", ridge=1e-3)
PLAIN = replace(DEFAULT, recovery=Weights(solver=EXACT, align=1e-2))
DESCENDING = replace(PLAIN, recovery=Weights(solver=EXACT, align=1e-2, descent=Descent(tokens_per_step=64, below=1.0)))
UNALIGNED = replace(PLAIN, recovery=Weights(solver=EXACT, align=None, descent=Descent(tokens_per_step=64, below=1.0)))
METHODS: dict[str, Method] = {
    "aligned": PLAIN,
    "descending": DESCENDING,
    "descending, not aligned": UNALIGNED,
    "default": DEFAULT,
    "kwon2022": PRESETS["kwon2022"],
    "li2024": PRESETS["li2024"],
}
# A third of the MACs, and a tenth: two rounds.
WEAK, STRONG = 0.4, 0.1


class Killed(Exception):
    """In place of a signal."""


def calibrated(method: Method, precision: PrecisionName = "float32", *, memory_limit: int | None = None) -> Calibrated:
    options = CalibrationOptions(tokens_per_batch=150, precision=precision, memory_limit=memory_limit)
    return calibrate(tiny.make_subject(tiny.make_model()), tiny.make_rows(80), method, options)


def taken(name: str, method: Method) -> Calibrated:
    """Of one of the models that a family is tested with."""
    case = cases.make(name)
    batches = [replace(batch_of(inputs_of(name, seed=i)), rows=3 * i + torch.arange(3)) for i in range(4)]
    options = CalibrationOptions(precision="float32")
    return calibrate(Subject(case.model, case.sublayers, CLASSIFICATION), batches, method, options)


def bits(pruned: Pruned) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pruned.model.state_dict().items()}


def same(one: Pruned, other: Pruned) -> None:
    """Same weights, masks and results, to the last bit."""
    assert one.results == other.results
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    first, second = bits(one), bits(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> Generator[None]:
    """So many sublayers are kept, then the run ends."""
    original, left = RoundOnDisk.fitted, [after]

    def fitted(self: RoundOnDisk, *args: Any, **kwargs: Any) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(RoundOnDisk, "fitted", fitted)
        yield


def interrupted_and_gone_on(
    dense: Calibrated, macs: float, method: Method, place: Path, monkeypatch: pytest.MonkeyPatch, *, after: int
) -> tuple[Pruned, list[str]]:
    """A cut that ends after so many sublayers, and another one that goes on; what that one took over."""
    budget = Budget(macs=macs)
    place.mkdir()
    with dying(monkeypatch, after), pytest.raises(Killed):
        cut(dense, budget, method, journal=JournalOnDisk(WorkingFolder(place)))
    journal = JournalOnDisk(WorkingFolder(place))
    found = cut(dense, budget, method, journal=journal)
    assert journal.problems == []
    return found, journal.taken_over


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("macs", [WEAK, STRONG])
def test_after_every_sublayer(name: str, macs: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS[name]
    dense = calibrated(method)
    whole = cut(dense, Budget(macs=macs), method)
    rounds = len(method.rounds.exponents(macs))
    stopped = next((i for i, result in enumerate(whole.results) if result.status == "stopped"), None)
    last = rounds * len(whole.results) if stopped is None else stopped + 1
    assert last > 1
    # all places of one method, and of the others those around the middle and the ends
    every = range(last) if name == "descending" else sorted({0, 1, last // 2, last - 1})
    for after in every:
        found, over = interrupted_and_gone_on(dense, macs, method, tmp_path / str(after), monkeypatch, after=after)
        same(found, whole)
        kept = after % len(whole.results)
        assert (f"{kept} of {len(whole.results)} sublayers" in " ".join(over)) == (kept > 0)


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize("method", ["default", "descending"])
def test_of_every_family(name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = METHODS[method]
    dense = taken(name, own)
    once = sum(s.stack.calls == 1 for s in dense.sublayers)
    if not once:
        pytest.skip("all of it is recovered in closed form")
    whole = cut(dense, Budget(macs=0.5), own)
    for after in {once // 2, once - 1}:
        found, _ = interrupted_and_gone_on(dense, 0.5, own, tmp_path / str(after), monkeypatch, after=after)
        same(found, whole)


@pytest.mark.parametrize(("precision", "limit"), [("bfloat16", None), ("float32", 0)])
def test_in_bfloat16_and_with_hidden_states_in_files(
    precision: PrecisionName, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = calibrated(DESCENDING, precision, memory_limit=limit)
    whole = cut(dense, Budget(macs=WEAK), DESCENDING)
    found, _ = interrupted_and_gone_on(dense, WEAK, DESCENDING, tmp_path / "kept", monkeypatch, after=2)
    same(found, whole)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = calibrated(DEFAULT)
    solves, retakes, stops = list[str](), list[int](), list[str]()
    solve = recovery._reconstruct  # pyright: ignore[reportPrivateUsage]
    take, arrivals = algorithm.take_statistics, Lockstep.arrivals

    def solving(model: nn.Module, sublayer: Any, *rest: Any) -> Any:
        solves.append(sublayer.name)
        return solve(model, sublayer, *rest)

    def taking(*args: Any, **kwargs: Any) -> Any:
        retakes.append(1)
        return take(*args, **kwargs)

    def arriving(self: Lockstep, sublayer: Any) -> Any:
        stops.append(sublayer.name)
        return arrivals(self, sublayer)

    monkeypatch.setattr(recovery, "_reconstruct", solving)
    monkeypatch.setattr(algorithm, "take_statistics", taking)
    monkeypatch.setattr(Lockstep, "arrivals", arriving)
    names = [s.name for s in dense.sublayers]
    folder = WorkingFolder(tmp_path)
    with dying(monkeypatch, len(names) + 1), pytest.raises(Killed):
        cut(dense, Budget(macs=STRONG), DEFAULT, journal=JournalOnDisk(folder))
    assert retakes == [1]
    for seen in (solves, retakes, stops):
        seen.clear()
    journal = JournalOnDisk(folder)
    cut(dense, Budget(macs=STRONG), DEFAULT, journal=journal)
    # of the first round nothing runs, of the second one forward passes by the first sublayer
    assert retakes == []
    assert stops == names
    assert list(dict.fromkeys(solves)) == names[1:]
    assert journal.taken_over == ["recovery, 4 of 4 sublayers", "recovery, round 2, 1 of 4 sublayers"]
    stops.clear()
    solves.clear()
    cut(dense, Budget(macs=STRONG), DEFAULT, journal=JournalOnDisk(folder))
    assert stops == solves == retakes == []


def test_statistics_come_back_bit_for_bit(tmp_path: Path) -> None:
    for method in (DEFAULT, PRESETS["kwon2022"]):
        folder = WorkingFolder(tmp_path / method.name)
        folder.path.mkdir()
        subject, rows = tiny.make_subject(tiny.make_model()), tiny.make_rows(80)
        options = CalibrationOptions(tokens_per_batch=150)
        first = calibrate(subject, rows, method, options, journal=JournalOnDisk(folder))
        journal = JournalOnDisk(folder)
        again = calibrate(subject, rows, method, options, journal=journal)
        assert journal.taken_over == ["statistics"]
        assert again.statistics.rows == first.statistics.rows
        for s in first.sublayers:
            one, other = first.statistics[s.name], again.statistics[s.name]
            assert one.rows == other.rows
            for part in ("read", "targets", "sources"):
                values, found = list(getattr(one, part)), list(getattr(other, part))
                assert len(values) == len(found)
                assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(values, found, strict=True))
            for part in ("x", "y_gradient"):
                moment, own = getattr(one, part), getattr(other, part)
                assert (moment is None) == (own is None)
                assert moment is None or torch.equal(moment.plain(), own.plain())
            if one.mask_gradients is not None:
                assert other.mask_gradients is not None
                assert torch.equal(one.mask_gradients, other.mask_gradients)
        same(cut(again, Budget(macs=WEAK), method), cut(first, Budget(macs=WEAK), method))


def test_another_budget_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = calibrated(PLAIN)
    folder = WorkingFolder(tmp_path)
    with dying(monkeypatch, 2), pytest.raises(Killed):
        cut(dense, Budget(macs=WEAK), PLAIN, journal=JournalOnDisk(folder))
    for budget in (Budget(macs=0.5), Budget(macs=WEAK, round_to=4), Budget(macs=WEAK, allocation="uniform")):
        journal = JournalOnDisk(folder)
        same(cut(dense, budget, PLAIN, journal=journal), cut(dense, budget, PLAIN))
        assert journal.taken_over == []
    journal = JournalOnDisk(folder)
    same(cut(dense, Budget(macs=WEAK), PLAIN, journal=journal), cut(dense, Budget(macs=WEAK), PLAIN))
    assert journal.taken_over == ["recovery, 2 of 4 sublayers"]


def flipped(file: Path) -> None:
    """One bit of the last byte is another one."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def emptied(file: Path) -> None:
    """As a machine leaves it that loses its power."""
    file.write_bytes(b"")


def overwritten(file: Path) -> None:
    """Something else."""
    file.write_text("{}" * 99)


@pytest.mark.parametrize(
    ("name", "first_left"),
    [("0/layers.0.ffn.safetensors", 1), ("0/selection.safetensors", 0), ("1/selection.safetensors", 4)],
)
@pytest.mark.parametrize("damage", [flipped, Path.unlink, emptied, overwritten])
def test_what_is_damaged_is_done_again_and_all_that_follows(
    name: str, first_left: int, damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, folder = calibrated(DEFAULT), WorkingFolder(tmp_path)
    whole = cut(dense, Budget(macs=STRONG), DEFAULT)
    with dying(monkeypatch, 6), pytest.raises(Killed):
        cut(dense, Budget(macs=STRONG), DEFAULT, journal=JournalOnDisk(folder))
    [place] = tmp_path.iterdir()
    damage(place / name)
    journal = JournalOnDisk(folder)
    same(cut(dense, Budget(macs=STRONG), DEFAULT, journal=journal), whole)
    assert (journal.problems == []) == (damage is Path.unlink)
    assert all("is damaged, and was done again" in told for told in journal.problems)
    done = sum(int(told.split(" of ")[0].split()[-1]) for told in journal.taken_over)
    assert done == first_left


def test_damaged_statistics_begin_everything_anew(tmp_path: Path) -> None:
    subject, rows, folder = tiny.make_subject(tiny.make_model()), tiny.make_rows(80), WorkingFolder(tmp_path)
    options = CalibrationOptions(tokens_per_batch=150)
    first = calibrate(subject, rows, DEFAULT, options, journal=JournalOnDisk(folder))
    whole = cut(first, Budget(macs=WEAK), DEFAULT, journal=JournalOnDisk(folder))
    flipped(tmp_path / "statistics" / "layers.1.ffn.safetensors")
    journal = JournalOnDisk(folder)
    again = calibrate(subject, rows, DEFAULT, options, journal=journal)
    same(cut(again, Budget(macs=WEAK), DEFAULT, journal=journal), whole)
    assert journal.taken_over == []
    assert len(journal.problems) == 1
    assert "statistics/layers.1.ffn.safetensors is not the file that was written" in journal.problems[0]


def test_a_disk_that_fills_up_costs_nothing_but_the_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = calibrated(PLAIN)
    whole = cut(dense, Budget(macs=WEAK), PLAIN)
    calls = list[int]()

    def full(file: Path, *_: Any) -> None:
        calls.append(1)
        file.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("faster_pruner.method.journal_on_disk._seal", full)
    journal = JournalOnDisk(WorkingFolder(tmp_path))
    same(cut(dense, Budget(macs=WEAK), PLAIN, journal=journal), whole)
    # it is not tried again, and no part of a file is left
    assert len(calls) == 1
    assert "could not have gone on" in journal.problems[0]
    assert "No space left on device" in journal.problems[0]
    assert [place for place in tmp_path.rglob("*") if place.is_file()] == []


def test_a_working_folder_is_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with working(output) as folder:
        folder.claim({"model": "one"})
        with pytest.raises(OutputError, match="another run writes .* at this moment"), working(output):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_says_what_it_belongs_to(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"

    class Ended(BaseException):
        """As a signal does."""

    with pytest.raises(Ended), working(output) as folder:
        folder.claim({"threads": "1", "method": {"a": 1}})
        raise Ended
    # nothing was kept: nothing stays
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Ended), working(output) as folder:
        folder.claim({"threads": "1", "method": {"a": 1}})
        folder.keep("part", lambda file: file.write_text("done"))
        (folder.path / "other.partial").write_text("half")
        raise Ended
    assert sorted(place.name for place in place_of(output).iterdir()) == ["other.partial", "part", "run.json"]
    with pytest.raises(OutputError) as caught, working(output) as folder:
        folder.claim({"threads": "2", "method": {"a": 2}})
    assert "differs from this one (threads: 1 then, 2 now, method)" in str(caught.value)
    assert caught.value.option == "resume"
    (place_of(output) / "run.json").write_text("[")
    damaged = pytest.raises(OutputError, match=r"run\.json is damaged; remove that folder to begin anew")
    with damaged, working(output) as folder:
        folder.claim({"threads": "1"})
    assert sorted(place.name for place in place_of(output).iterdir()) == ["part", "run.json"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    place = place_of(tmp_path / "out")
    place.mkdir()
    (place / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds what no run left there"), working(tmp_path / "out"):
        pass
    assert (place / "mine.txt").read_text() == "precious"
    (tmp_path / "elsewhere").mkdir()
    place_of(tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="holds what no run left there"), working(tmp_path / "linked"):
        pass
    place_of(tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="cannot write"), working(tmp_path / "file"):
        pass
