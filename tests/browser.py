"""A headless Chromium, controlled over the WebDriver protocol with the standard library."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Browser", "available", "browser"]

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
]
_SECONDS = 60


def available() -> bool:
    """Whether this machine has a Chromium and its driver."""
    return _chromium() is not None and shutil.which("chromedriver") is not None


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One session of a browser."""

    def __init__(self, address: str, session: str) -> None:
        self._address = f"{address}/session/{session}"

    def send(self, path: str, **values: Any) -> Any:
        """Send one command and return its value."""
        return _post(f"{self._address}/{path}", values)

    def chrome(self, command: str, **values: Any) -> Any:
        """Send one command of Chrome's own protocol."""
        return self.send("goog/cdp/execute", cmd=command, params=values)

    def open(self, url: str, *, width: int, dark: bool) -> None:
        """Show a page on a screen ``width`` pixels wide, with a light or dark colour scheme."""
        phone = width < 600
        self.chrome("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.chrome("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.send("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a JavaScript function and return what it returns."""
        return self.send("execute/sync", script=script, args=list(arguments))

    def press(self, key: str) -> None:
        """Press a key; the focused element receives it."""
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.send("actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def wait_for(self, script: str, seconds: float = _SECONDS) -> Any:
        """Run ``script`` until it returns a true value, and return that value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.1)
        return value

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries of the console ("browser") or the network ("performance") since the last call."""
        return self.send("se/log", type=kind)

    def requests(self) -> list[str]:
        """Return the addresses requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logged("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def picture(self, path: Path) -> None:
        """Save a picture of the whole page."""
        size = self.chrome("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.chrome("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Run a browser with the empty folder ``profile``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        session = _started(address, profile)
        try:
            yield Browser(address, session)
        finally:
            _request("DELETE", f"{address}/session/{session}")
    finally:
        driver.terminate()
        driver.wait(_SECONDS)


def _started(address: str, profile: Path) -> str:
    """Wait until the driver answers; return the id of a new session."""
    options = {"binary": _chromium(), "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
    end = time.monotonic() + _SECONDS
    while True:
        try:
            return _post(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _post(url: str, values: dict[str, Any]) -> Any:
    return _request("POST", url, values)


def _request(method: str, url: str, values: dict[str, Any] | None = None) -> Any:
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.read().decode()}") from error
