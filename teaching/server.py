"""The page's server: for this machine only, and for those who know the key."""

import json
import math
import os
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from clips.films import FILM_SUFFIXES
from own_clips.recipes import FEW_CLIPS
from system.config_file import load_config
from system.errors import UserError, message_for_user, summarize
from teaching.data_set import DISABLED, DataSet, DiskFullError, GoneError
from teaching.live import LiveSession
from teaching.pictures import MAX_FRAMES, encode_clip, frames_of_film
from teaching.takeaway import Takeaway
from teaching.training import Training
from training.run_folder import REPORT_FILE

PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    *("base", "camera", "classes", "record", "films"),
    *("train", "results", "try", "take", "start"),
)
ADDRESS = "127.0.0.1"
MAX_BYTES, MAX_FILM_BYTES = 4 * 2**20, 64 * 2**20  # of a request
SECONDS = 60  # without a byte, until a connection is closed
MAX_FIELDS = 10  # of a query
PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src "
    "'self'; img-src 'self' data:; media-src blob:; base-uri 'none'; form-action "
    "'none'; frame-ancestors 'none'"
)
LOCKED_PAGE = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Teach your own gestures</title>"
    "<p>This page needs the key that is in its address: open the address that <code>teach.py"
    "</code> printed in the terminal, which ends in <code>?key=…</code>."
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MIN_KEY = 16  # characters
KEY_FILE = ".page_key"  # in the data folder, so that an open tab works after a new start
NO_CONTENT = "default-src 'none'"  # may be loaded without the key


class RequestError(Exception):
    """A request that is refused with an HTTP status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class LockedError(RequestError):
    """A request for the page without its key; the message is an HTML page."""


class Query(dict):
    """The parameters in an address."""

    def __missing__(self, name):
        raise UserError(f"{name} is missing in the request; reload the page")


class Server(ThreadingHTTPServer):
    """A server for the page's requests; `address` is the page's URL."""

    daemon_threads = True
    request_queue_size = 128  # a page with many thumbnails opens many connections at once

    def __init__(
        self,
        port: int,
        data_set: DataSet,
        training: Training,
        session: LiveSession,
        draw_samples: Callable,
    ):
        """Bind the port, 0 for a free one. Raises UserError if it cannot be used.

        draw_samples: yields (class, frames uint8 RGB [T, H, W, 3]) of drawn sample clips.
        """
        self.data_set, self.training, self.session = data_set, training, session
        self.draw_samples, self.recipe = draw_samples, load_config(FEW_CLIPS)
        self.key = saved_key(data_set.folder / KEY_FILE)
        self.takeaway = Takeaway(training)
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise UserError(
                f"--port {port}: cannot be opened ({error.strerror}); close the "
                "program that uses it, or choose another, such as "
                f"--port {port + 1}"
            ) from None
        self.address = f"http://{ADDRESS}:{self.server_port}/?key={self.key}"

    def server_close(self):
        """Close the socket, and stop making the zip."""
        super().server_close()
        self.takeaway.close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):  # a page was closed
            super().handle_error(request, client_address)

    # --- one method per path: (query, body) -> an object for JSON, or (type, bytes, policy) -------

    def page(self, query, body):
        self.training.prepare()
        nonce = secrets.token_urlsafe(16)
        parts = {
            "STYLE": (PAGE / "style.css").read_text(encoding="utf-8"),
            "SCRIPT": "".join(
                (PAGE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
            ),
            "NONCE": nonce,
            "VIDEO_SUFFIXES": "|".join(suffix[1:] for suffix in FILM_SUFFIXES),
        }
        text = (PAGE / "page.html").read_text(encoding="utf-8")
        for name, part in parts.items():
            text = text.replace(name, part)
        return "text/html; charset=utf-8", text.encode(), PAGE_POLICY.format(nonce)

    def report(self, query, body):
        path = self.training.run_folder / REPORT_FILE
        if not path.exists():
            raise RequestError(404, "there is no report yet")
        return "text/html; charset=utf-8", path.read_bytes(), REPORT_POLICY

    def strip(self, query, body):
        return "image/jpeg", self.data_set.strip(query["id"], self.recipe), NO_CONTENT

    def clips(self, query, body):
        return [
            {"id": clip_id, "name": name, "is_off": own_set == DISABLED}
            for clip_id, (name, own_set) in self.data_set.clips.items()
        ]

    def progress(self, query, body):
        progress = self.training.progress()
        if progress["state"] != "running" and progress["has_network"]:  # somebody may soon try it
            threading.Thread(target=self.session.prepare, daemon=True).start()
        return progress | {
            "num_changes": self.data_set.num_changes,
            "zip": self.takeaway.progress(),
        }

    def results(self, query, body):
        return self.training.results()

    def add(self, query, body):
        return {"id": self._add(query["name"], unpacked(body))}

    def _add(self, name, pictures) -> str:
        """Add a clip; on a full disk, delete what was removed and try once more."""
        try:
            clip_id = self.data_set.add(name, pictures)
        except DiskFullError:
            self.training.make_room()
            clip_id = self.data_set.add(name, pictures)
        self.training.prepare()
        return clip_id

    def samples(self, query, body):
        samples = [(name, encode_clip(frames)) for name, frames in self.draw_samples()]
        names = {name for name, _ in samples} & {name for name, _ in self.data_set.clips.values()}
        if names:  # else the same clips could be both trained on and validated with
            raise UserError(
                f"there are clips of {summarize(sorted(names))} already, and the sample clips are "
                "always the same; delete these gestures to add the samples again"
            )
        return {"ids": [self._add(name, pictures) for name, pictures in samples]}

    def film(self, query, body):
        pictures = frames_of_film(query["name"], body, self.recipe)
        return "application/octet-stream", packed(pictures), NO_CONTENT

    def remove(self, query, body):
        ids = listed(body)
        is_full = self.data_set.remove(ids)
        if is_full:
            self.training.make_room()
        kept = [clip_id for clip_id in ids if clip_id in self.data_set.removed]
        return {"kept": kept, "is_full": is_full}  # kept: what can be undone

    def restore(self, query, body):
        try:
            return self.data_set.restore(listed(body))
        except GoneError as error:  # the page need not try again
            raise RequestError(410, str(error)) from None

    def rename(self, query, body):
        return self.data_set.rename(query["name"], query["new"])

    def enable(self, query, body):
        return self.data_set.enable(query["name"], query["on"] == "true")

    def train(self, query, body):
        return self.training.start(is_resumed=query["resume"] == "true")

    def use(self, query, body):
        return self.training.use()

    def stop(self, query, body):
        return self.training.stop()

    def export(self, query, body):
        return self.takeaway.start()

    def download(self, query, body):
        content = self.takeaway.content()
        if content is None:
            raise RequestError(404, "there is no zip of this network yet")
        return "application/zip", content, NO_CONTENT

    def begin(self, query, body):
        return self.session.begin()

    def look(self, query, body):
        times = [number(text) / 1000 for text in query["times"].split(",")]
        return self.session.look(number(query["turn"]), times, unpacked(body))

    def score(self, query, body):
        return self.session.score_film(unpacked(body))

    def backwards(self, query, body):
        return self.session.backwards(number(query["turn"]))


PATHS = {
    "GET": {
        "/": Server.page,
        "/report": Server.report,
        "/strip": Server.strip,
        "/clips": Server.clips,
        "/progress": Server.progress,
        "/results": Server.results,
        "/download": Server.download,
    },
    "POST": {
        "/add": Server.add,
        "/film": Server.film,
        "/samples": Server.samples,
        "/remove": Server.remove,
        "/restore": Server.restore,
        "/rename": Server.rename,
        "/enable": Server.enable,
        "/train": Server.train,
        "/stop": Server.stop,
        "/use": Server.use,
        "/export": Server.export,
        "/begin": Server.begin,
        "/look": Server.look,
        "/score": Server.score,
        "/backwards": Server.backwards,
    },
}


class Handler(BaseHTTPRequestHandler):
    """A handler that checks requests before it reads their body, and sends errors as text."""

    protocol_version, timeout = "HTTP/1.1", SECONDS

    def log_message(self, *_):
        pass  # one line per frame would hide the address

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        try:
            content = self.dispatch()
        except RequestError as error:
            self.close_connection = True  # its body may not have been read
            content = {"error": str(error)}
            if isinstance(error, LockedError):
                content = "text/html; charset=utf-8", str(error).encode(), NO_CONTENT
            self.send(error.status, content)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            message = message_for_user(error)
            if message is None:
                traceback.print_exc()
            self.send(
                400 if message else 500,
                {"error": message or "an error in this program; the terminal shows it"},
            )
        else:
            self.send(200, content)

    def dispatch(self):
        """Check the request and return its answer."""
        try:
            url = urlsplit(self.path)
            query = Query(parse_qsl(url.query, keep_blank_values=True, max_num_fields=MAX_FIELDS))
        except ValueError:
            raise RequestError(400, "the address cannot be read") from None
        host = self.headers.get("Host", "").removesuffix(f":{self.server.server_port}")
        if host not in (ADDRESS, "localhost"):  # another site whose name resolves to this machine
            raise RequestError(403, f"open this page at {ADDRESS}")
        key = self.headers.get("X-Key") or query.get("key", "")
        if not secrets.compare_digest(key.encode(), self.server.key.encode()):
            if url.path == "/":  # a person reads the answer
                raise LockedError(403, LOCKED_PAGE)
            raise RequestError(403, "open the address that teach.py printed in the terminal")
        is_post, headers = self.command == "POST", self.headers
        if "Transfer-Encoding" in headers or (is_post and "Content-Length" not in headers):
            raise RequestError(411, "a request needs a Content-Length")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise RequestError(400, "the Content-Length is not a number")
        most = MAX_FILM_BYTES if url.path == "/film" else MAX_BYTES
        if len(length) > 10 or int(length) > most:
            raise RequestError(413, f"a request has at most {most // 2**20} MiB")
        if url.path not in PATHS[self.command]:
            raise RequestError(404, "there is no such page")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError("the request was cut off")
        return PATHS[self.command][url.path](self.server, query, body)

    def send(self, status, content):
        kind, body, policy = (
            content
            if isinstance(content, tuple)
            else ("application/json", json.dumps(content, allow_nan=False).encode(), NO_CONTENT)
        )
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(body),
            "Content-Security-Policy": policy,
            "Cache-Control": "private, max-age=3600" if kind == "image/jpeg" else "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def unpacked(body: bytes) -> list[bytes]:
    """Return the pictures in a request, each of which follows its length in four bytes.

    Raises UserError if they do not fill the request exactly, or if there are too many.
    """
    pictures, place = [], 0
    while place < len(body) and len(pictures) <= MAX_FRAMES:
        length = int.from_bytes(body[place : place + 4], "little")
        pictures.append(body[place + 4 : place + 4 + length])
        place += 4 + length
    if len(pictures) > MAX_FRAMES:
        raise UserError(f"a request has at most {MAX_FRAMES} frames")
    if place != len(body):
        raise UserError("the frames do not fill the request; reload the page")
    return pictures


def packed(pictures: list[bytes]) -> bytes:
    """Return pictures as `unpacked` takes them."""
    return b"".join(len(picture).to_bytes(4, "little") + picture for picture in pictures)


def listed(body: bytes) -> list[str]:
    """Return the ids in a request, a JSON list. Raises UserError if it is another thing."""
    try:
        ids = json.loads(body)
    except ValueError:
        ids = None
    if not isinstance(ids, list) or not all(isinstance(clip_id, str) for clip_id in ids):
        raise UserError("the request has no list of clips; reload the page")
    return ids


def saved_key(path: Path) -> str:
    """Return the page's key for a data folder; make one for this user's eyes if there is none."""
    if path.exists() and len(key := path.read_text(encoding="utf-8").strip()) >= MIN_KEY:
        return key
    key = secrets.token_urlsafe(16)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return key


def number(text: str) -> float:
    """Parse a number. Raises UserError if it is not a finite one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{text[:40]!r} is not a number")
    return value
