"""A frozen backbone as a function from pixels to features, as fast as the machine allows."""

from contextlib import contextmanager, nullcontext

import torch

from config import Config
from model import normalize_clips, views_of
from networks.efficientnet_lite import merge_padding
from networks.inference import fold_batchnorm
from networks.stages import num_channels, to_meta
from system.device import computing_in, one_core_each

FRAMES_AT_ONCE = 16  # through the backbone, so that its activations stay in the cache


def window_shape(model, config: Config) -> tuple[int, ...]:
    """Return the shape of a window's features, (T, ...), computed without data."""
    clip = torch.empty(1, num_channels(model), *config.clip_shape, device="meta")
    with torch.no_grad():
        return tuple(to_meta(model).frame_features(clip).shape[1:])


@contextmanager
def backbone_function(model, device, config: Config):
    """Yield the function that computes features on the device, in `eval_precision`.

    It maps windows, uint8 [N, T, H, W, C], and a number V of views to the features of all views,
    fp16 [N * V, T, ...] on the CPU. On a CPU each core computes other frames.
    """
    network = merge_padding(fold_batchnorm(model))

    def compute_part(frames):
        with torch.inference_mode(), computing_in(device, config.eval_precision):
            return network.frame_features(frames).half()[:, 0].cpu()

    def compute(windows: torch.Tensor, num_views: int = 1) -> torch.Tensor:
        clips = views_of(normalize_clips(windows, device, config), num_views)  # [N, C, T, H, W]
        frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None]  # clips of one frame
        features = torch.cat(list(each(compute_part, frames.split(FRAMES_AT_ONCE))))
        return features.unflatten(0, (len(clips), -1))

    with nullcontext() if device.type == "cuda" else one_core_each() as pool:
        each = pool.map if pool else map
        yield compute
