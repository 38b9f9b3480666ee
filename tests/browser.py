"""A headless Chromium, spoken to through its debugging pipe: what a page shows, and how it answers to mouse and keys.

Nothing of it is a Python package; where no Chromium is installed `find_browser` finds none, and its tests are skipped.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory
from typing import Any


SECONDS = 60  # for an answer
NAMES = ("chromium", "chromium-browser", "chrome-headless-shell", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own; a context manager.

    `requests` has the addresses that were asked for since `open`, `errors` what scripts and the console complained of.
    """

    def __init__(self, path: str):
        self._profile = TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "about:blank"]
        low, high = (os.dup(fd) for fd in (theirs_in, theirs_out))  # out of the way of 3 and 4

        def as_three_and_four() -> None:
            os.dup2(low, 3), os.dup2(high, 4)

        self._process = subprocess.Popen(
            command,
            preexec_fn=as_three_and_four,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, low, high):
            os.close(fd)
        self._rest, self._last, self._session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        end = time.monotonic() + SECONDS
        while not (
            targets := [target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        ):
            assert time.monotonic() < end, "the browser opens no page"
            time.sleep(0.1)
        target = targets[0]
        self._session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._in), os.close(self._out)
        self._profile.cleanup()

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select([self._in], [], [], SECONDS)[0], "the browser does not answer"
            part = os.read(self._in, 2**16)
            assert part, "the browser has ended"
            self._rest += part
        content, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(content)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return message

    def open(self, page: Path, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.go(page.resolve().as_uri(), width, height, dark)

    def go(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.requests.clear(), self.errors.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"in vain: {condition}"
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        result = self("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(result["data"]))
