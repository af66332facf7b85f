"""Programs in processes that have not imported us, without the seconds that importing torch and transformers takes.

Each is forked from a process that has imported those and nothing of ours, and has computed nothing. Programs that are
about the start of an interpreter, its environment or its exit are started as processes of their own instead.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

# What every program needs, and takes seconds to import.
_USUAL = ("torch", "transformers", "datasets", "sklearn.metrics", "scipy.stats", "safetensors.torch")
_CLASSES = ("AutoModelForSequenceClassification", "BertForSequenceClassification", "PreTrainedTokenizerFast")
# What a forked process does with its program.
CODE_OF = """
import sys, traceback

def code_of(program, *, unforeseen):
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return unforeseen
"""
# For programs that kill themselves: something happens before and after every call of a function.
AROUND = """
def around(owner, name, killer):
    original = getattr(owner, name)
    def wrapped(*args, **kwargs):
        killer.event()
        result = original(*args, **kwargs)
        killer.event()
        return result
    setattr(owner, name, wrapped)
"""
# For programs that watch their memory: bytes that are the process's own.
OWN_MEMORY = """
from pathlib import Path

def own_memory():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])
"""
_SERVER = (
    CODE_OF
    + """
import atexit, importlib, json, os

for name in sys.argv[1].split(","):
    importlib.import_module(name)
import transformers
for name in sys.argv[2].split(","):
    getattr(transformers, name)


def run(program, arguments, place):
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join(place, name), os.O_WRONLY | os.O_CREAT, 0o600), number)
        sys.argv[:] = ["-c", *arguments]
        code = code_of(program, unforeseen=1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


assert not [name for name in sys.modules if name.startswith("faster_pruner")]
for line in sys.stdin:
    child = os.fork()
    if not child:
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


@cache
def _server(packages: tuple[str, ...]) -> subprocess.Popen[str]:
    """One per process of tests and set of packages, until that ends."""
    command = [sys.executable, "-c", _SERVER, ",".join((*_USUAL, *packages)), ",".join(_CLASSES)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(_stopped, process)
    return process


def _stopped(process: subprocess.Popen[str]) -> None:
    """It ends where nothing more is asked."""
    process.communicate()


def run(
    program: str, *arguments: str | Path, check: bool = True, packages: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)` returns.

    Args:
        program: Python.
        arguments: of it.
        check: raise CalledProcessError where it fails.
        packages: imported before it starts, besides the usual ones.
    """
    words = [str(each) for each in arguments]
    if not hasattr(os, "fork"):
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, check=check, capture_output=True, text=True)
    server: Any = _server(packages)
    with tempfile.TemporaryDirectory() as place:
        server.stdin.write(json.dumps([program, words, place]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, errors = (Path(place, name).read_text() for name in ("out", "err"))
    done = subprocess.CompletedProcess([program, *words], code, out, errors)
    if check and code:
        raise subprocess.CalledProcessError(code, done.args, out, errors)
    return done
