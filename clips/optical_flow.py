"""Optical flow between the frames of a clip, as additional input of a network."""

import cv2
import numpy as np

# A byte covers movements of up to 16 pixels in steps of an eighth; 128 is no movement.
STEPS_PER_PIXEL = 8
REST = 128
# Half of the resolution. By default the method uses a quarter of it for frames of 112 pixels, and
# all of it for frames of 84 pixels, which takes four times as long.
FINEST_SCALE = 1
SMALLEST_SIDE = 16  # pixels that the method below needs


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Compute each pixel's movement to the next frame. uint8 RGB [T, H, W, 3] -> [T, H, W, 2].

    The two channels are pixels to the right and down, times 8, plus 128, clipped to 0 to 255. The
    last frame has no next one and gets no movement. (DIS: Kroeger et al., arXiv 1603.03590)
    """
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    method.setFinestScale(FINEST_SCALE)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames)]
    flow = np.full((*frames.shape[:3], 2), REST, np.uint8)
    for result, grey, next_grey in zip(flow, greys, greys[1:], strict=False):
        pixels = method.calc(grey, next_grey, None)
        result[:] = np.clip(np.rint(pixels * STEPS_PER_PIXEL) + REST, 0, 255)
    return flow
