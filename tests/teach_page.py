"""teach.py's server, for tests: on a free port, and in a thread of this process."""

import http.client
import json
import threading
from contextlib import contextmanager
from urllib.parse import urlencode

import numpy as np
import simplejpeg
import torch

from teach import draw_samples
from teaching.data_set import DataSet
from teaching.live import LiveSession
from teaching.server import Server
from teaching.training import Training


@contextmanager
def served(folder, is_prepared=False):
    """A server for the data set in `folder`.

    is_prepared: whether a process waits for the training; it takes seconds of a core.
    """
    data_set = DataSet(folder)
    training = Training(data_set, "cpu", "cpu")
    if not is_prepared:
        training.prepare = lambda: None
    session = LiveSession(lambda: training.checkpoint, torch.device("cpu"))
    try:
        with Server(0, data_set, training, session, draw_samples) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server
            server.shutdown()
    finally:
        training.close()
        data_set.close()


def ask(server, method, path, body=None, **query):
    """Send a request with the key; return the status and the content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    connection.request(method, f"{path}?{urlencode({'key': server.key} | query)}", body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(content) if is_json else content


def packed(pictures) -> bytes:
    return b"".join(len(one).to_bytes(4, "little") + one for one in pictures)


def jpegs(values, height=24, width=32) -> list[bytes]:
    """Pictures of one grey value each."""
    return [
        simplejpeg.encode_jpeg(np.full((height, width, 3), value, np.uint8), 95) for value in values
    ]
