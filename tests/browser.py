"""A headless Chromium, spoken to through two pipes (the DevTools protocol), so that tests need no driver."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 60.0


def found() -> str | None:
    """The browser's path, from `$CHROMIUM` or by its usual names; None where there is none."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


@dataclass
class Browser:
    """One page of a running browser.

    Attributes:
        to: pipe that commands go into.
        answers: pipe that answers and events come out of.
        said: errors and warnings of the console.
        asked_for: addresses that the page loaded or tried to.
    """

    to: int
    answers: int
    session: str = ""
    said: list[str] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)
    _number: int = 0
    _rest: bytes = b""

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        os.write(self.to, json.dumps(command | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    def open(self, file: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of some width."""
        self.said.clear()
        self.asked_for.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.ask("Page.navigate", url=file.resolve().as_uri())
        started = time.monotonic()
        while self.value("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() - started < _SECONDS
            time.sleep(0.02)
        # what is said or loaded late
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self, file: Path) -> Path:
        """A screenshot of the whole page."""
        taken = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(taken["data"]))
        return file

    def printed(self, file: Path) -> Path:
        """The page on paper, as a PDF."""
        taken = self.ask("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(taken["data"]))
        return file

    def _next(self) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.answers], [], [], _SECONDS)
            assert ready, "the browser does not answer"
            chunk = os.read(self.answers, 1 << 16)
            assert chunk, "the browser has ended"
            self._rest += chunk
        raw, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(raw)
        given = message.get("params", {})
        if message.get("method") == "Log.entryAdded":
            self.said.append(given["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.said.append(str(given["args"]))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(given["exceptionDetails"]))
        elif message.get("method") == "Network.requestWillBeSent":
            self.asked_for.append(given["request"]["url"])
        return message


@contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """A browser with an empty page, which ends with the block."""
    their_end, to = os.pipe()
    answers, their_voice = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += ["--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # it reads from descriptor 3 and writes to 4
        redirected = f'exec "$@" 3<&{their_end} 4>&{their_voice}'
        process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command],
            pass_fds=(their_end, their_voice),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_end)
        os.close(their_voice)
        try:
            browser = Browser(to, answers)
            target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.ask(f"{domain}.enable")
            yield browser
        finally:
            process.terminate()
            process.wait(timeout=_SECONDS)
            os.close(to)
            os.close(answers)
