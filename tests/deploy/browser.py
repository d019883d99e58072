"""A page in headless Chromium, driven over the DevTools protocol."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import websocket

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_REMOTE = ("--remote-debugging-port=0", "--remote-allow-origins=*")


class Page:
    """One tab."""

    def __init__(self, address):
        self._socket = websocket.create_connection(address, timeout=60)
        self._count = 0
        self("Page.enable")

    def __call__(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def close(self):
        self._socket.close()

    def go(self, url):
        self("Page.navigate", url=url)

    def js(self, code):
        found = self("Runtime.evaluate", expression=code, returnByValue=True)
        return found["result"].get("value")

    def wait(self, code, timeout=60):
        """Wait until an expression holds, and return it."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            value = self.js(code)
            if value:
                return value
            time.sleep(0.25)
        raise TimeoutError(f"{code} did not hold in {timeout} s: {self.js(_TEXT)}")

    def click(self, text, kind="button,a,[role=tab]"):
        """Click the first element of a kind that holds a text."""
        find = (
            f"[...document.querySelectorAll({json.dumps(kind)})]"
            f".find(e => e.innerText.trim().startsWith({json.dumps(text)}) && "
            "!e.disabled && e.offsetParent !== null)"
        )
        self.press(find)

    def press(self, find):
        """Press the mouse on what an expression finds."""
        self.wait(f"!!{find}")
        self.js(f"{find}.scrollIntoView({{block: 'center'}})")
        time.sleep(0.5)
        box = self.js(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"({find}.getBoundingClientRect())"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )
        time.sleep(0.5)

    def fill(self, selector, value):
        """Type into a field, as a person would."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.press(found)
        self.js(f"{found}.select && {found}.select()")
        self("Input.insertText", text=value)

    def picture(self, path):
        data = self("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))


_TEXT = "document.body.innerText.slice(0, 600)"


@contextmanager
def opened(size=(1400, 900), flags=_FLAGS):
    """Start a browser and give its page; it ends with the block."""
    program = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory(prefix="em-browser-") as folder:
        process = subprocess.Popen(
            [
                program,
                *flags,
                *_REMOTE,
                f"--user-data-dir={folder}",
                f"--window-size={size[0]},{size[1]}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port_file = Path(folder) / "DevToolsActivePort"
            until = time.monotonic() + 60
            while not (port_file.exists() and port_file.read_text().strip()):
                assert time.monotonic() < until, "Chromium did not start"
                time.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = [p for p in json.load(answer) if p["type"] == "page"]
            page = Page(pages[0]["webSocketDebuggerUrl"])
            try:
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            process.wait(20)
            # Its helpers write into the folder a moment longer.
            time.sleep(1)
