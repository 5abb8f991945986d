"""Print the classes of videos (classify.py VIDEO...) or of a camera (classify.py --camera 0)."""

import json
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import onnxruntime


class Classifier:
    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["about"])

    def __call__(self, video) -> dict[str, float]:  # a path, or RGB frames, uint8 [N, H, W, 3]
        windows = video[self.positions(len(video))] if hasattr(video, "shape") else self.read(video)
        scores = [self.session.run(None, {"frames": np.stack(window)})[0] for window in windows]
        pairs = zip(self.about["classes"], np.mean(scores, 0).tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def positions(self, num_frames):  # of the frames of each window, int [windows, frames]
        size, step, windows = (self.about[key] for key in ("frames", "step", "windows"))
        if self.about["sampling"] == "segments":  # one frame from each of equal parts
            places = np.arange(size) + (np.arange(windows)[:, None] + 0.5) / windows
            return (places * num_frames / size).astype(int)
        last = max(0, num_frames - 1 - (size - 1) * step)
        starts = np.linspace(0, last, windows).round() if windows > 1 else np.array([last // 2])
        return np.minimum(starts.astype(int)[:, None] + np.arange(size) * step, num_frames - 1)

    def read(self, path):  # the frames of each window of a video
        with av.open(str(path)) as video:
            times = np.unique([frame.pts for frame in video.decode(video=0)])
            rate = self.about["frame_rate"] * float(video.streams.video[0].time_base)  # per tick
        num_frames = (times[-1] - times[0]) * len(times) / max(1, len(times) - 1) * rate
        ticks = times[0] + (self.positions(max(2, round(num_frames))) + 0.5) / rate
        rows = times[np.searchsorted(times, ticks + 1e-6, "right") - 1]
        with av.open(str(path)) as video:
            wide, shown = float(video.streams.video[0].sample_aspect_ratio or 1), {}
            for frame in (each for each in video.decode(video=0) if each.pts in rows):
                square = frame.reformat(round(wide * frame.width), frame.height, "rgb24")
                shown[frame.pts] = np.rot90(square.to_ndarray(), frame.rotation // 90)
        return [[shown[when] for when in row] for row in rows.tolist()]


def watch(model, camera):  # a number or an address
    def collect():  # its frames, with their times
        for frame in video.decode(video=0):
            shown.append((time.monotonic(), frame))

    kind = {"linux": "v4l2"}.get(sys.platform, "avfoundation") if camera.isdecimal() else None
    video = av.open("/dev/video" * (kind == "v4l2") + camera, format=kind)
    live, shown, smooth, last = model.about["live"], [], {}, -np.inf
    threading.excepthook = lambda _: None  # an unplugged camera ends the thread, and so the loop
    (reader := threading.Thread(target=collect, daemon=True)).start()
    while (reader.is_alive() or sys.exit(f"{camera}: has ended")) and not time.sleep(0.01):
        times = np.array([when for when, _ in list(shown)] or [last])
        wanted = times[-1] - np.arange(live["frames"])[::-1] / model.about["frame_rate"]
        if times[-1] > last and times[0] <= wanted[0]:
            places = np.searchsorted(times, wanted, "right") - 1
            frames = np.stack([shown[i][1].to_ndarray(format="rgb24") for i in places])
            del shown[: places[0]]
            keep, last = np.exp((last - times[-1]) / live["smoothing_seconds"]), times[-1]
            smooth = {n: keep * smooth.get(n, 0) + (1 - keep) * p for n, p in model(frames).items()}
            name = max(smooth, key=smooth.get) if max(smooth.values()) >= live["threshold"] else "…"
            print(f"\r{name:<79}", end="", flush=True)


if __name__ == "__main__":
    is_live, given = "--camera" in sys.argv[1:2], sys.argv[1:]
    classifier = Classifier(Path(__file__).with_name("network.onnx"))
    for place in given[is_live:] or sys.exit(__doc__):
        try:
            scores = watch(classifier, place) if is_live else classifier(place)
        except (av.error.FFmpegError, ValueError, TypeError, LookupError, KeyboardInterrupt) as why:
            sys.exit(f"{place}: {str(why) or 'stopped'}")
        print(place, *(f"{name} {score:.1%}" for name, score in scores.items()))
