"""Several processes: what they exchange, and what they are told by a launcher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import several
from command import run
from faster_pruner.errors import NumericalError, OptionError, ProcessError
from faster_pruner.host.launch import Launched, launched, only_one, speaks
from faster_pruner.host.ranks import ALONE, joined
from faster_pruner.linalg import RegressionMoments

_EXCHANGES = """
import os, sys, torch
from faster_pruner.host import arithmetic
from faster_pruner.host.ranks import joined
arithmetic._own_answer = lambda: os.environ["RANK"] == "1"
from faster_pruner.linalg import RegressionMoments
with joined("cpu") as ranks:
    rank = ranks.rank
    # the first one's answer
    assert not arithmetic.bfloat16_pays()
    whole = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    seen = []
    strided = (whole * (rank + 1)).T
    ranks.sum_(strided)
    assert torch.equal(strided, (whole * 6).T), strided
    half = torch.full((5,), rank + 0.5, dtype=torch.bfloat16)
    ranks.broadcast_(half, source=1)
    assert half.tolist() == [1.5] * 5
    assert ranks.lead(lambda: {"led by": rank, "tensor": whole})["led by"] == 0
    assert [float(t[0]) for t in ranks.gather(torch.tensor([rank + 1.0]))] == [1.0, 2.0, 3.0]
    assert ranks.spread(lambda own: [(rank, each) for each in own], list("abcde")) == [
        (0, "a"), (1, "b"), (2, "c"), (0, "d"), (1, "e")]
    order = []
    def share():
        order.append("share")
        assert ranks.lead(lambda: "first")
    for item in ranks.after_first(range(2 * (rank != 2)), share):
        order.append(item)
    assert order == [[0, "share", 1], ["share", 0, 1], ["share"]][rank], order
    x, r = (t.chunk(3)[rank] for t in torch.load(sys.argv[1]))
    made = {}
    for shared in (True, False):
        moments = RegressionMoments(x.shape[1], r.shape[1], x.device)
        # tokens of the third process come from nowhere in one of the two cases
        pieces = [] if rank == 2 and shared else [(x[:7], r[:7]), (x[7:], r[7:])]
        if shared:
            for own in ranks.after_first(pieces, lambda: moments.share_centre(ranks)):
                moments.add(*own)
        else:
            for own in pieces:
                moments.add(*own)
        moments.add_up(ranks)
        made[shared] = (*moments.normal_equations(intercept=True), *moments.normal_equations(intercept=False),
                        moments.target_square, moments.count)
    same = ranks.gather(made)
    assert all(torch.equal(one, other) for found in same for shared in (True, False)
               for one, other in zip(found[shared][:5], made[shared][:5]))
    if ranks.first:
        torch.save(made, sys.argv[2])
assert ranks.waited > 0
assert arithmetic.bfloat16_pays() == (rank == 1)
# the same processes may meet again
with joined("cpu") as again:
    assert again.gather(again.rank) == [0, 1, 2]
print("done")
"""


def test_three_processes_exchange_and_add_up(tmp_path: Path) -> None:
    torch.manual_seed(3)
    # far from zero, and each third elsewhere
    x = torch.randn(90, 6) + 40 + torch.arange(3).repeat_interleave(30)[:, None]
    r = torch.randn(90, 4) - 7
    torch.save((x, r), tmp_path / "given.pt")
    for ended in several.run(_EXCHANGES, tmp_path / "given.pt", tmp_path / "made.pt", count=3):
        assert (ended.returncode, ended.stdout, ended.said) == (0, "done\n", "")
    found = torch.load(tmp_path / "made.pt")
    for shared, tokens in ((True, 60), (False, 90)):
        u, v = x[:tokens].double(), r[:tokens].double()
        a, b = u - u.mean(dim=0), v - v.mean(dim=0)
        expected = (a.T @ a, a.T @ b, u.T @ u, u.T @ v, v.square().sum())
        assert found[shared][5] == tokens
        for got, wanted in zip(found[shared], expected, strict=False):
            torch.testing.assert_close(got, wanted, rtol=1e-2, atol=0.1 * float(wanted.abs().mean()))
        whole = RegressionMoments(6, 4, x.device)
        whole.add(x[:7], r[:7])
        whole.add(x[7:tokens], r[7:tokens])
        if shared:
            # factors are rounded as in one process, so that nothing but the order of sums differs
            for got, wanted in zip(found[True], whole.normal_equations(intercept=True), strict=False):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_one_process_exchanges_nothing() -> None:
    tensor = torch.ones(2)
    ALONE.sum_(tensor)
    ALONE.broadcast_(tensor)
    assert tensor.tolist() == [1.0, 1.0]
    assert ALONE.lead(lambda: 3) == ALONE.finish(lambda: 3) == 3
    assert ALONE.gather("a") == ["a"]
    assert ALONE.spread(lambda items: [item + 1 for item in items], [1, 2]) == [2, 3]
    assert list(ALONE.after_first([1, 2], lambda: pytest.fail("there is nobody to share with"))) == [1, 2]
    with joined("cpu") as ranks:
        assert ranks is ALONE
        assert ranks.alone
        assert ranks.first


def _environment(monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)


_MET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch)
    assert launched() == Launched()
    assert speaks()
    _environment(monkeypatch, RANK="1", WORLD_SIZE="4")
    assert launched() == Launched(), "a batch system's leftovers: nobody is there to meet"
    _environment(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", LOCAL_WORLD_SIZE="4", **_MET)
    assert launched() == Launched(5, 8, 1, 4)
    assert not speaks()
    assert speaks(ProcessError("the first five are gone", speaker=5))
    assert not speaks(NumericalError("of this process: the first one says it"))
    with pytest.raises(OptionError, match="a sweep runs in one process, and 8 were started"):
        only_one("a sweep")


@pytest.mark.parametrize(
    ("rank", "count", "message"), [("x", "2", "RANK is 'x'"), ("2", "2", "count from 0"), ("0", "many", "WORLD_SIZE")]
)
def test_a_launcher_that_says_nonsense(rank: str, count: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, RANK=rank, WORLD_SIZE=count, **_MET)
    with pytest.raises(OptionError, match=message), joined("cpu"):
        pass


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:0", "cannot be shared by 2"), ("mps", "'cuda' for a GPU each"), ("cuda", "GPUs")]
)
def test_devices_that_processes_cannot_share(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, RANK="1", WORLD_SIZE="2", **_MET)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionError, match=message), joined(device):
        pass


@pytest.mark.parametrize("command", ["sweep", "plan", "evaluate"])
def test_other_commands_are_for_one_process(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    macs = [] if command == "evaluate" else ["--macs", "0.5"]
    _environment(monkeypatch, RANK="0", WORLD_SIZE="2", **_MET)
    code, out, errors = run(command, "my-model", "--task", "sst2", *macs)
    assert (code, out) == (2, "")
    assert f"error: {command} runs in one process, and 2 were started" in errors
    monkeypatch.setenv("RANK", "1")
    assert run(command, "my-model", "--task", "sst2", *macs) == (2, "", "")
