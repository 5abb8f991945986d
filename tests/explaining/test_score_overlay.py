"""Saved films of what a network was shown."""

import av
import numpy as np

from explaining.score_overlay import save_mp4


def test_a_film_may_have_a_colon_in_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_mp4("12:30:05.mp4", np.zeros((3, 48, 64, 3), np.uint8), 12)
    with av.open(str(tmp_path / "12:30:05.mp4")) as container:
        assert container.streams.video[0].frames == 3
