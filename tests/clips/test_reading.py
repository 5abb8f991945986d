"""From the frames of a clip to the network's input."""

import numpy as np

from clips.frames import FramesInMemory
from clips.reading import distinct_frames, read_windows


class CountingSource(FramesInMemory):
    """Frames in memory, which notes the positions that are read."""

    def __init__(self, frames):
        super().__init__(frames)
        self.read = []

    def frames_at(self, positions):
        self.read += positions
        return super().frames_at(positions)


def test_a_frame_at_several_positions_is_read_once():
    source = CountingSource([np.full((2, 3, 3), number, np.uint8) for number in range(9)])
    positions = np.array([7, 2, 2, 4, 7, 7])
    places = {}
    for indices, frame in distinct_frames(source, positions):
        places |= dict.fromkeys(indices, int(frame.max()))
    assert source.read == [2, 4, 7]
    assert [places[index] for index in range(6)] == positions.tolist()


def test_windows_that_overlap_read_a_frame_once():
    source = CountingSource([np.full((2, 3, 3), number, np.uint8) for number in range(5)])
    clip = np.empty((4, 3, 2, 3, 3), np.uint8)  # 2 transforms of 2 windows

    def add(number):
        return lambda frame, result: np.add(frame, number, out=result)

    positions = np.array([[0, 1, 1], [1, 3, 3]])
    read_windows(source, positions, [add(0), add(100)], clip)
    assert source.read == [0, 1, 3]
    assert clip[:, :, 0, 0, 0].tolist() == [*positions.tolist(), *(positions + 100).tolist()]
