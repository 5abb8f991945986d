"""The server behind the page: what it answers, what it refuses, and how it begins and ends."""

import errno
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from movies import write_video
from runs import PROJECT
from teach_page import ask, jpegs, packed, served

import teach
from teaching.pictures import MAX_FRAMES, decode_jpeg
from teaching.server import KEY_FILE, MAX_BYTES, PATHS, unpacked


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("teach") / "mine") as running:
        yield running


def raw(server, text) -> str:
    """Send bytes as they are; return the whole answer."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b"")).decode()


CLIP = packed(jpegs([1, 2]))
TURN = {"turn": "0"}
# name -> (method, path, body, query), the status, and a part of the message
REFUSED = {
    "no such page": (("GET", "/etc/passwd", None, {}), 404, "no such page"),
    "get what is to be posted": (("GET", "/train", None, {}), 404, "no such page"),
    "no name": (("POST", "/add", CLIP, {}), 400, "name is missing"),
    "no picture": (("POST", "/add", packed([b"<svg/>", b"GIF89a"]), {"name": "a"}), 400, "JPEG"),
    "cut off": (("POST", "/add", CLIP[:-1], {"name": "a"}), 400, "do not fill the request"),
    "no frames": (("POST", "/add", b"", {"name": "a"}), 400, "2 to 120 frames"),
    "frames without end": (
        ("POST", "/add", b"\0" * 4 * (MAX_FRAMES + 1), {"name": "a"}),
        400,
        "at most 120 frames",
    ),
    "no clip": (("POST", "/remove", b'["../../x"]', {}), 400, "no clip ../../x"),
    "no list": (("POST", "/remove", b"[1]", {}), 400, "no list of clips"),
    "not removed": (("POST", "/restore", b'["1"]', {}), 410, "no removed clip 1"),
    "no class": (("POST", "/rename", b"", {"name": "a", "new": "b"}), 400, "no gesture “a”"),
    "no film": (("POST", "/film", b"x", {"name": "a.exe"}), 400, "a.exe: not a video"),
    "broken film": (("POST", "/film", b"x", {"name": "a.avi"}), 400, "a.avi: cannot be"),
    "nothing to use": (("POST", "/use", b"", {}), 400, "no stopped training"),
    "no results": (("GET", "/results", None, {}), 400, "no results yet"),
    "no thumbnail": (("GET", "/strip", None, {"id": "../../etc"}), 400, "no clip"),
    "no report": (("GET", "/report", None, {}), 404, "no report yet"),
    "too few clips": (("POST", "/train", b"", {"resume": "false"}), 400, "2 gestures with 5 clips"),
    "no network": (("POST", "/begin", b"", {}), 400, "train one first"),
    "frames without times": (("POST", "/look", CLIP, TURN), 400, "times is missing"),
    "too few times": (("POST", "/look", CLIP, TURN | {"times": "5"}), 400, "2 frames with 1 times"),
    "no time": (("POST", "/look", CLIP, TURN | {"times": "5,now"}), 400, "'now' is not a number"),
    "endless time": (("POST", "/look", CLIP, TURN | {"times": "5,inf"}), 400, "not a number"),
    "too many fields": (
        ("GET", "/clips", None, dict.fromkeys(map(str, range(20)), "")),
        400,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_sentence(server, capfd, case):
    (method, path, body, query), status, message = REFUSED[case]
    found, content = ask(server, method, path, body, **query)
    assert found == status and message in content["error"]
    assert ask(server, "GET", "/clips") == (200, [])
    assert "Traceback" not in capfd.readouterr().err


HEAD = "{} {}?key={} HTTP/1.1\r\nHost: {}\r\n"
# name -> (method, path, key, host, further headers), status
UNREAD = {
    "another name for this machine": (("GET", "/", "", "evil.example:{port}", ""), 403),
    "another port": (("GET", "/", "", "127.0.0.1:1", ""), 403),
    "no key": (("GET", "/clips", "no", "127.0.0.1:{port}", ""), 403),
    "another key": (("POST", "/stop", "nö", "localhost:{port}", "Content-Length: 0\r\n"), 403),
    "chunked": (("POST", "/stop", "", "127.0.0.1:{port}", "Transfer-Encoding: chunked\r\n"), 411),
    "chunked with a length": (
        (
            "POST",
            "/stop",
            "",
            "127.0.0.1:{port}",
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        ),
        411,
    ),
    "no length": (("POST", "/stop", "", "127.0.0.1:{port}", ""), 411),
    "strange length": (("POST", "/stop", "", "127.0.0.1:{port}", "Content-Length: -1\r\n"), 400),
    "too large": (
        ("POST", "/add", "", "127.0.0.1:{port}", f"Content-Length: {MAX_BYTES + 1}\r\n"),
        413,
    ),
    "much too large": (
        ("POST", "/add", "", "127.0.0.1:{port}", f"Content-Length: {'9' * 5000}\r\n"),
        413,
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_unsafe_is_refused_before_its_body_is_read(server, case):
    (method, path, key, host, headers), status = UNREAD[case]
    head = HEAD.format(method, path, key or server.key, host.format(port=server.server_port))
    answer = raw(server, f"{head}{headers}\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ") and '{"error": "' in answer
    assert "\r\nConnection: close\r\n" in answer


def test_a_request_that_is_cut_off_saves_nothing(server):
    head = HEAD.format("POST", "/add", f"{server.key}&name=a", f"localhost:{server.server_port}")
    raw(server, f"{head}Content-Length: 90\r\n\r\nabc")
    assert ask(server, "GET", "/clips") == (200, [])


@pytest.mark.parametrize("path", [path for paths in PATHS.values() for path in paths])
def test_every_path_needs_the_key(server, path):
    method = next(method for method, paths in PATHS.items() if path in paths)
    assert ask(server, method, path, b"", key="")[0] == 403


def test_who_lacks_the_key_reads_where_it_is(server):
    for key in ("", "wrong"):
        status, page = ask(server, "GET", "/", key=key)
        assert status == 403 and b"open the address that <code>teach.py</code> printed" in page


def test_a_data_folder_keeps_its_key(tmp_path):
    with served(tmp_path / "mine") as first:
        key, path = first.key, tmp_path / "mine" / KEY_FILE
    with served(tmp_path / "mine") as second:  # so that an open tab works again
        assert second.key == key == path.read_text() and len(key) > 20
        assert path.stat().st_mode & 0o077 == 0
    path.write_text("")
    with served(tmp_path / "mine") as third:
        assert len(third.key) > 20 and third.key != key


def test_on_a_full_disk_removed_clips_make_room_for_a_new_one(tmp_path, monkeypatch):
    with served(tmp_path / "mine") as server:
        data_set, write = server.data_set, server.data_set._write_frames
        ids = [ask(server, "POST", "/add", CLIP, name="a")[1]["id"] for _ in range(2)]
        body = json.dumps(ids[:1]).encode()
        assert ask(server, "POST", "/remove", body) == (200, {"kept": ids[:1], "is_full": False})

        def full(*given):
            if data_set.removed:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(*given)

        monkeypatch.setattr(data_set, "_write_frames", full)
        assert ask(server, "POST", "/add", CLIP, name="a") == (200, {"id": "3"})
        assert list(data_set.clips) == ["2", "3"]


def test_a_class_with_a_clip_whose_files_are_gone_can_be_removed_and_come_back(tmp_path):
    with served(tmp_path / "mine") as server:
        ids = [ask(server, "POST", "/add", CLIP, name=name)[1]["id"] for name in "aab"]
        before = ask(server, "POST", "/remove", json.dumps(ids[2:]).encode())
        shutil.rmtree(server.data_set.path(ids[0]))
        answer = ask(server, "POST", "/remove", json.dumps(ids[:2]).encode())
        assert answer == (200, {"kept": ids[1:2], "is_full": False})
        for kept in (answer[1]["kept"], before[1]["kept"]):  # the other undo is there, too
            assert ask(server, "POST", "/restore", json.dumps(kept).encode())[0] == 200
        assert list(server.data_set.clips) == ids[1:]


def test_many_connections_at_once_wait_for_their_turn(server):
    assert server.request_queue_size >= 128


def test_sample_gestures_are_added_by_one_request(tmp_path):
    with served(tmp_path / "mine") as server:
        status, answer = ask(server, "POST", "/samples", b"")
        assert status == 200 and len(answer["ids"]) == 20
        assert server.data_set.counts() == {"Moving Right": 10, "Moving Left": 10}
        server.data_set.remove(["1"])
        status, answer = ask(server, "POST", "/samples", b"")  # the same clips
        assert status == 400 and "clips of Moving Left, Moving Right already" in answer["error"]
        assert len(server.data_set.clips) == 19


def test_a_film_that_a_browser_cannot_play_is_read(server, tmp_path):
    frames = np.empty((24, 200, 300, 3), np.uint8)
    frames[:] = np.arange(24, dtype=np.uint8)[:, None, None, None] * 10
    films = {"Old.AVI": frames, "long.avi": np.repeat(frames[:, ::4, ::4], 11, 0)}
    answers = {}
    for name, content in films.items():
        write_video(tmp_path / name, content, 24, "mpeg4", "yuv420p")
        answers[name] = ask(server, "POST", "/film", (tmp_path / name).read_bytes(), name=name)
    status, content = answers["Old.AVI"]
    pictures = [decode_jpeg(picture) for picture in unpacked(content)]
    assert status == 200 and len(pictures) == 12 and pictures[0].shape == (120, 180, 3)
    assert np.diff([picture.mean() for picture in pictures]).min() > 10
    status, content = answers["long.avi"]
    assert status == 400 and content["error"] == "long.avi: lasts longer than 10 s; cut it first"


def test_the_page_may_load_nothing_from_elsewhere(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", server.address.partition(str(server.server_port))[2])
    answer = connection.getresponse()
    page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', page))
    assert f"script-src 'nonce-{nonce}'" in policy and "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"  # the key is in the address
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []
    connection.close()
    assert nonce not in ask(server, "GET", "/")[1].decode()


def test_a_report_is_shown(server):
    server.training.run_folder.mkdir(parents=True)
    (server.training.run_folder / "report.html").write_text("<h1>a run</h1>")
    assert ask(server, "GET", "/report") == (200, b"<h1>a run</h1>")


def test_a_port_in_use_is_named(server, tmp_path, capsys):
    flags = ["--data", str(tmp_path / "mine"), "--no_browser", "-g", "cpu"]
    assert teach.main([*flags, "--port", str(server.server_port)]) == 2
    assert (
        f"--port {server.server_port}: cannot be opened (Address already in use)"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        teach.main([*flags, "--port", "65536"])
    assert "--port" in capsys.readouterr().err


def test_the_command_serves_until_ctrl_c(tmp_path):
    command = [
        sys.executable,
        "teach.py",
        "--port",
        "0",
        "--no_browser",
        "-g",
        "cpu",
        "--data",
        str(tmp_path / "mine"),
    ]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        port, key = re.search(r"open http://127\.0\.0\.1:(\d+)/\?key=(\S+)", line).groups()
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
        connection.request("GET", f"/?key={key}")
        assert "Teach your own gestures" in connection.getresponse().read().decode()
        # A process waits for the training, and leaves cores to the browser.
        flags = ["ps", "axeww", "-o", "ppid=,command="]
        lines = subprocess.run(flags, capture_output=True, text=True, check=True).stdout.split("\n")
        children = [line for line in lines if line.split()[:1] == [str(process.pid)]]
        (child,) = [line for line in children if "starter.py" in line]  # imports start others
        assert "OMP_WAIT_POLICY=PASSIVE" in child
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130 and process.stderr.read() == ""
