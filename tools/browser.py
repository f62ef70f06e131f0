"""A real browser for pages that need no network, driven over its debugging pipe (Chrome DevTools Protocol)."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60  # seconds
# Nothing but files and this machine can be reached.
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--proxy-server=127.0.0.1:9")


class Browser:
    """A headless Chromium with one page; a context manager.

    Attributes:
        errors: what the page's scripts and policy complained of.
        asked: addresses that were asked for, that of the page first, those of data left out.
    """

    def __init__(self):
        self.errors, self.asked, self._number = [], [], 0

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={self._folder.name}", *OFFLINE, "about:blank"]
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", CHROMIUM, *flags],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser), os.close(from_browser)
        self._rest, self._session, self._loaded = b"", None, False
        target = next(one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        with suppress(OSError, EOFError, TimeoutError):
            self.send("Browser.close")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        os.close(self._out), os.close(self._in)
        with suppress(OSError):
            self._folder.cleanup()

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], PATIENCE)[0]:
                raise TimeoutError(f"the browser has said nothing for {PATIENCE} seconds")
            if not (found := os.read(self._in, 1 << 20)):
                raise EOFError("the browser has ended")
            self._rest += found
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        what, about = found.get("method"), found.get("params", {})
        self._loaded |= what == "Page.loadEventFired"
        if what == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif what == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])
        elif what == "Network.requestWillBeSent" and not about["request"]["url"].startswith("data:"):
            self.asked.append(about["request"]["url"])
        return found

    def send(self, method: str, **parameters) -> dict:
        """Send a command of the protocol, and give its result; what the page says meanwhile is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target", "Browser")):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != self._number:
            pass
        if "error" in found:
            raise AssertionError(f"{method}: {found['error']}")
        return found["result"]

    def look(self, width: int = 1400, height: int = 900, dark: bool = False, scripts: bool = True) -> None:
        """Set size and colours of the window."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[colours])
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, address: str) -> float:
        """Open a page, and give the seconds until it is loaded and drawn."""
        for place in ("about:blank", address):  # to another place of the same page there would be no loading
            self.asked.clear(), self.errors.clear()
            start, self._loaded = time.monotonic(), False
            self.send("Page.navigate", url=place)
            while not self._loaded:
                self._read()
        return time.monotonic() - start

    def run(self, script: str):
        """Run a script in the page, and give its value; one that is a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a letter's key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    def point(self, x: float, y: float) -> None:
        """Move the pointer, in pixels of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write an image of the window, or of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Print the page on A4."""
        found = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        return base64.b64decode(found["data"])
