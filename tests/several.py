"""Programs in several processes that share a run, without a launcher: what torchrun would set is set here.

The processes are forked from one that has imported the usual packages (`fresh`).
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import fresh

_EACH = (
    fresh.CODE_OF
    + """
import contextlib, os, socket, time
count, stopped, place, program, *rest = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
sys.argv[1:] = rest
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
children = []
for rank in range(count):
    child = os.fork()
    if child:
        children.append(child)
        continue
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.pop("LOCAL_RANK", None), os.environ.pop("LOCAL_WORLD_SIZE", None)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(place, f"{rank}.{name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    code = 70
    try:
        code = code_of(program, unforeseen=70)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
waiting, ends, began = dict(zip(children, range(count))), {}, time.time()
while waiting and time.time() < began + 90:
    for child, rank in list(waiting.items()):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            ends[rank] = os.waitstatus_to_exitcode(status), time.time()
            del waiting[child]
    # what was stopped is nobody's to wait for
    if list(waiting.values()) == [stopped]:
        break
    time.sleep(0.02)
for child, rank in waiting.items():
    os.kill(child, 9)
    os.waitpid(child, 0)
    ends[rank] = -9, time.time()
import json
print(json.dumps([ends[rank] for rank in range(count)]))
"""
)


_LOGGED = re.compile(r"(\[rank\d+\]:\s*)?\[[WEI]\d{4} |Exception raised from|frame #|<omitting |\s*$")


class Ended(subprocess.CompletedProcess[str]):
    """How one of several processes ended.

    Attributes:
        at: the second at which it did.
    """

    at: float

    @property
    def said(self) -> str:
        """What it has put out as errors, but for the log of torch's own network code: of a peer that leaves first."""
        lines = self.stderr.splitlines(keepends=True)
        return "".join(line for line in lines if not _LOGGED.match(line))


def run(program: str, *arguments: str | Path, count: int, stopped: int = -1) -> list[Ended]:
    """The program in `count` processes, and how they ended, by rank; one that is `stopped` is killed in the end."""
    with tempfile.TemporaryDirectory() as place:
        told = json.loads(
            fresh.run(_EACH, str(count), str(stopped), place, program, *arguments).stdout.splitlines()[-1]
        )
        found: list[Ended] = []
        for rank, (code, at) in enumerate(told):
            out, errors = (Path(place, f"{rank}.{name}") for name in ("out", "err"))
            ended = Ended([program, *arguments], code, out.read_text(), errors.read_text())
            ended.at = at
            found.append(ended)
    return found
