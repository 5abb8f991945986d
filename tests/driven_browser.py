"""Chromium driven over a pipe (--remote-debugging-pipe), with a camera that is a file.

Messages are JSON, each ended by a zero byte (https://chromedevtools.github.io/devtools-protocol/).
"""

import base64
import itertools
import json
import os
import select
import subprocess
import tempfile
import time

import cv2
import numpy as np
from browser import CHROMIUM, FLAGS

SECONDS = 120  # a machine may be slow
COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
# Chromium reads commands from descriptor 3 and writes to 4.
START = 'exec "$@" 3<&{} 4>&{}'


def write_camera(path, frames, rate) -> str:
    """Write a video that Chromium shows as its camera, again and again.

    frames: uint8 RGB [T, H, W, 3], H and W even; rate: frames per second.
    """
    height, width = frames.shape[1:3]
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
        for frame in frames:
            file.write(b"FRAME\n")
            file.write(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2YUV_I420).tobytes())
    return str(path)


class Browser:
    """A headless Chromium with one page. Use it in a `with` statement."""

    def __init__(self, camera=None, *flags, allowed=True):
        """camera: a file of `write_camera`; allowed: whether pages may use it."""
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self.write_end = os.pipe()
        self.read_end, answers = os.pipe()
        flags = [flag for flag in FLAGS if not flag.startswith("--host-resolver-rules")] + [
            "--remote-debugging-pipe",
            "--use-fake-device-for-media-stream",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *flags,
            *([f"--use-file-for-fake-video-capture={camera}"] if camera else []),
            *(["--use-fake-ui-for-media-stream"] if allowed else ["--deny-permission-prompts"]),
        ]
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                START.format(commands, answers),
                "bash",
                CHROMIUM,
                *flags,
                f"--user-data-dir={self.profile.name}",
                "about:blank",
            ],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands), os.close(answers)
        self.numbers, self.rest, self.session, self.complaints = itertools.count(1), b"", None, []
        self.paused = []  # requests that wait for an answer, after Fetch.enable
        attached = self.send("Target.attachToTarget", targetId=self._page(), flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Page", "Log"):
            self.send(f"{domain}.enable")

    def _page(self) -> str:
        """The first page, which may open a moment later than the pipe."""
        end = time.monotonic() + SECONDS
        while True:
            targets = self.send("Target.getTargets")["targetInfos"]
            if pages := [one["targetId"] for one in targets if one["type"] == "page"]:
                return pages[0]
            assert time.monotonic() < end, targets
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session = None
        self.send("Browser.close")
        self.process.wait(SECONDS)
        os.close(self.write_end), os.close(self.read_end)
        self.profile.cleanup()

    def send(self, method, **parameters) -> dict:
        """Send a command, and return its result. Complaints of the page are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("method") in COMPLAINTS:
                self.complaints.append(answer["params"])
            if answer.get("method") == "Fetch.requestPaused":
                self.paused.append(answer["params"])
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _message(self) -> dict:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read_end], [], [], SECONDS)
            assert ready, f"the browser was silent for {SECONDS} s"
            part = os.read(self.read_end, 2**16)
            assert part, "the browser has gone"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def js(self, expression):
        """Return the value of an expression, awaited if it is a promise."""
        answer = self.send(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, address) -> None:
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def until(self, condition, seconds=SECONDS) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.js(f"!!({condition})"):
            assert time.monotonic() < end, (
                f"not within {seconds} s: {condition}: {self.js('document.body.innerText')}"
            )
            time.sleep(0.05)

    def key(self, kind, code="Space", key=" ") -> None:
        """kind: keyDown or keyUp."""
        self.send("Input.dispatchKeyEvent", type=kind, code=code, key=key)

    def drop(self, paths, selector) -> None:
        """Drop files and folders onto an element."""
        box = self.js(
            f"(() => {{ const b = document.querySelector({selector!r})"
            ".getBoundingClientRect(); return [b.x + 9, b.y + 9]; })()"
        )
        data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def screenshot(self, path, width, height, scheme="light", **options) -> None:
        """Save the page as a PNG, at a width in pixels, in the light or dark scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True, **options)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture))
