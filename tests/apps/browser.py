"""A real browser that a test leads through a page, over the pipe that it takes commands from."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.benchmarks.browser import browser

PATIENCE = 90.0  # seconds, on a machine that has other work too
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--mute-audio"),
)


class Tab:
    """One page that is open."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        self.addresses: list[str] = []

    def attach(self) -> None:
        """Take the first tab."""
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the Chrome DevTools protocol."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            told = self._take()
            if told.get("id") == self._number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result
            self._note(told)

    def open(self, address: str, width: int, height: int = 1000) -> None:
        """Open an address in a window of that many pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=address)

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(AssertionError):  # the page is being opened
                if self.ask(f"!!({script})"):
                    return
            time.sleep(0.1)
        raise AssertionError(
            f"{script} did not become true; the page says: {self.ask('document.body.innerText')}"
        )

    def press(self, button: str) -> None:
        """Click on the visible button with that text."""
        find = f"[...document.querySelectorAll('button')].find((b) => b.innerText.trim() === {json.dumps(button)})"
        self.wait_for(f"!!{find} && {find}.offsetParent !== null")
        self.ask(f"{find}.click()")

    def press_row(self, number: int) -> None:
        """Click on a run in the list."""
        self.ask(f"document.querySelectorAll('.v2v-runs button')[{number}].click()")

    def type(self, selector: str, text: str) -> None:
        """Type into a field, as a keyboard does."""
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def choose_file(self, path: Path) -> None:
        """As by dropping it on the page's first place for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def picture(self, path: Path) -> None:
        """Keep what is seen as a PNG."""
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        )

    def _take(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._answers, 1 << 16)
            assert block, "the browser has ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def _note(self, told: dict[str, Any]) -> None:
        if told.get("method") == "Network.requestWillBeSent":
            self.addresses.append(told["params"]["request"]["url"])
        elif told.get("method") == "Runtime.exceptionThrown":
            self.problems.append(told["params"]["exceptionDetails"]["text"])
        elif told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
            self.problems.append(
                f"{told['params']['entry']['text']} {told['params']['entry'].get('url', '')}"
            )


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """Lend a tab of a fresh browser; skips the test where there is none."""
    program = browser()
    commands_in, commands = os.pipe()
    answers, answers_out = os.pipe()

    def as_the_browser_expects() -> None:
        os.dup2(os.dup(commands_in), 103)
        os.dup2(os.dup(answers_out), 104)
        os.dup2(103, 3)
        os.dup2(104, 4)

    process = subprocess.Popen(
        [program, *_QUIET, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=as_the_browser_expects,
        close_fds=False,
    )
    os.close(commands_in)
    os.close(answers_out)
    try:
        opened = Tab(commands, answers)
        opened.attach()
        yield opened
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(answers)
