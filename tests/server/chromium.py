"""A Chromium without a window, driven over its own protocol by a pipe: no packages and no downloads beside the browser.

Knows nothing of the pages it shows.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Space": (32, " "),
    "End": (35, ""),
    "Home": (36, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}
CTRL, SHIFT = 2, 8


def find_chromium() -> str | None:
    """The browser's program: WORKFLOW_CHROMIUM, or one of the usual names."""
    given = os.environ.get("WORKFLOW_CHROMIUM")
    return given or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One browser with one page. `problems` and `requests` fill while the page is used."""

    def __init__(self, program: str, profile: Path, *, width: int = 1280, height: int = 900):
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]
        flags += [
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
        ]
        flags += [
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ]
        # The browser reads commands from descriptor 3 and writes to 4.
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", program, *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.problems, self.requests = [], []
        self._number, self._held, self._answers, self._session = 0, b"", {}, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self._session = None
        self.call("Browser.close")
        self.process.wait(20)
        self.process.stdin.close()
        self.process.stdout.close()

    # ---- protocol

    def call(self, method: str, **params) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        end = time.monotonic() + 30
        while self._number not in self._answers:
            assert time.monotonic() < end, f"no answer to {method}"
            self._read(0.5)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self, timeout_s: float):
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            return
        piece = os.read(self.process.stdout.fileno(), 1 << 20)
        assert piece, "the browser has ended"
        *messages, self._held = (self._held + piece).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, params: dict):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("exception", params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"])

    # ---- what a person does

    def open(self, url: str):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, *, timeout_s: float = 15.0):
        end = time.monotonic() + timeout_s
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"never: {expression}\n{self.value('document.body.innerText')}"
            time.sleep(0.02)
        return found

    def press(self, key: str, modifiers: int = 0, times: int = 1):
        code, text = KEYS[key]
        named = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        for _ in range(times):
            shown = {"text": text} if text and not modifiers & CTRL else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **named, **shown)
            self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **named)

    def write(self, text: str):
        self.call("Input.insertText", text=text)

    def tab_to(self, wanted: str, *, back: bool = False, most: int = 40) -> list[str]:
        """Presses Tab until the element of this id, or with this text, has the focus; the places on the way."""
        way = []
        for _ in range(most):
            self.press("Tab", SHIFT if back else 0)
            way.append(self.focus())
            if way[-1] == wanted:
                return way
        raise AssertionError(f"{wanted} is not reached by Tab: {way}")

    def focus(self) -> str:
        return self.value("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 40)")

    # ---- how it looks

    def look(self, *, dark: bool = False, width: int = 1280, height: int = 900):
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path):
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
