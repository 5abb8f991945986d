"""A real browser, for tests of pages: headless Chromium, without a network."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium here; on Debian: apt-get install chromium"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
# Shows the page in a frame of each width, and takes down what a reader's browser makes of it.
LOOK = """<!doctype html><meta charset="utf-8"><body style="margin:0"><script>
const page = PAGE, widths = WIDTHS, found = {};
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width;
  frame.height = 4000;
  frame.onload = () => {
    const inner = frame.contentDocument, body = frame.contentWindow.getComputedStyle(inner.body);
    found[width] = {
      title: inner.title, scripts: inner.scripts.length, background: body.backgroundColor,
      pictures: [...inner.images].map(picture => picture.naturalWidth),
      needs: inner.documentElement.scrollWidth,
    };
    if (Object.keys(found).length < widths.length) return;
    console.log("all is loaded");
    const result = document.createElement("pre");
    result.id = "found";
    result.textContent = JSON.stringify(found);
    document.body.append(result);
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script>"""


def browse(path, screenshot, size=(1000, 1400), *flags) -> tuple[str, list[str]]:
    """Opens a page; returns its DOM as HTML, and what was written to the console."""
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                *flags,
                f"--user-data-dir={profile}",
                "--dump-dom",
                f"--window-size={size[0]},{size[1]}",
                f"--screenshot={screenshot}",
                Path(path).resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    return result.stdout, re.findall(r"CONSOLE.*\] (.*)", result.stderr)


def look_at(page: str, folder, widths) -> tuple[dict[int, dict], list[str]]:
    """What the browser found in the page at each width in pixels, and what it complained of."""
    # In a script, these would begin or end something.
    text = json.dumps(page).replace("<", "\\u003c")
    path = Path(folder) / "look.html"
    path.write_text(LOOK.replace("PAGE", text).replace("WIDTHS", json.dumps(widths)))
    dom, console = browse(path, Path(folder) / "look.png", (sum(widths) + 100, 4000))
    (found,) = re.findall(r'<pre id="found">(.*)</pre>', dom)
    assert any("all is loaded" in line for line in console)  # so that silence means something
    complaints = [line for line in console if "all is loaded" not in line]
    seen = json.loads(html.unescape(found))
    return {width: seen[str(width)] for width in widths}, complaints
