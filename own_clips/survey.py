"""Survey clips before training: which are readable, how long and how large they are."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from clips.folders import Clip, ClipFolder
from clips.frames import FrameError
from config import Config
from scoring.baselines import small_grey_frames
from system import processes
from system.errors import UserError, summarize

MAX_CLIPS = 2000  # maximum that is opened; of more, a sample
MAX_BAD_SHARE = 0.1
MIN_CHANGE = 5 / 255  # standard deviation of a pixel over time, above the noise of a camera


@dataclass
class ClipStats:
    """Statistics of a sample of clips. Arrays have one entry per readable clip."""

    num_frames: np.ndarray
    native_rates: np.ndarray  # of videos, frames per second; NaN for folders of frames
    sizes: np.ndarray  # [N, 2], height and width in pixels, upright
    moving_shares: np.ndarray  # of the picture that changes in the clip, 0..1
    bad: dict[str, str]  # id -> reason
    labels: np.ndarray | None = None  # the class of each, if known
    max_height: int | None = None  # pixels, of a pack with shrunk frames

    @property
    def seconds(self) -> np.ndarray:
        """Return durations; NaN for folders of frames, whose frame rate is unknown."""
        return self.num_frames / self.native_rates


def survey(root: ClipFolder, ids: list[str], config: Config, labels=None) -> ClipStats:
    """Open each clip, or an even sample of 2,000, and decode a few of its frames.

    labels: the class of each clip, if known.
    Raises UserError if more than a tenth of the clips cannot be read.
    """
    own_rate = root.frame_rate
    keys = {"frame_rate": own_rate or config.frame_rate, "frame_height": None}
    config = config.model_copy(update=keys)  # nothing is chosen yet
    places = np.linspace(0, len(ids) - 1, min(MAX_CLIPS, len(ids))).astype(int)
    chosen = [ids[place] for place in places]
    good, bad = [], {}
    with ThreadPoolExecutor(processes.available_cores()) as pool:
        found = pool.map(lambda clip_id: _measure(root.clip(clip_id), config), chosen)
        for clip_id, look in zip(
            chosen, tqdm(found, "looking", len(chosen), leave=False, disable=None), strict=True
        ):
            if isinstance(look, str):
                bad[clip_id] = look
            else:
                good.append(look)
    if len(bad) > MAX_BAD_SHARE * len(chosen):
        folders = {clip_id: clip_id.rpartition("/")[0] for clip_id in chosen}
        sound = {folder for clip_id, folder in folders.items() if clip_id not in bad}
        lost = sorted(set(folders.values()) - sound)
        raise UserError(
            f"--data {root}: {len(bad):,} of {len(chosen):,} clips cannot be read"
            f"{f', all those in {summarize(lost, 5)}' if lost else ''}, such as "
            f"{summarize(bad.values(), 2)}; repair or remove them"
        )
    num_frames, rates, sizes, moving = map(np.array, zip(*good, strict=True))
    if own_rate:
        rates = np.full(len(good), own_rate)
    if labels is not None:
        labels = np.array([labels[place] for place in places if ids[place] not in bad])
    return ClipStats(num_frames, rates, sizes, moving, bad, labels, root.max_height)


def _measure(clip: Clip, config):
    """Return a clip's entries of `ClipStats`, or why the clip cannot be read."""
    try:
        source = clip.open(config)
        size = next(iter(source.frames_at([0]))).shape[:2]
        changes = small_grey_frames(source).std(0)
    except FrameError as error:
        return str(error)
    moving_share = float(np.mean(changes > MIN_CHANGE))
    if source.native_rate is not None:  # a film
        num_frames = round(len(source) / config.frame_rate * source.native_rate)
        return num_frames, source.native_rate, size, moving_share
    return len(source), float("nan"), size, moving_share
