"""Optical flow between the frames of a clip, for the network that looks at movement directly."""

import cv2
import numpy as np

# Bytes hold movements of up to 16 pixels in steps of an eighth; 128 is rest.
STEPS_A_PIXEL = 8
REST = 128
# Half of the resolution, where that leaves enough. Left to itself, the method takes a quarter of it
# for frames of 112 pixels and all of it for 84, which takes four times as long.
FINEST_SCALE = 1
SMALLEST_SIDE = 16  # pixels that the method below needs


def optical_flow(frames: np.ndarray) -> np.ndarray:
    """Movement of each pixel from each frame to the next. uint8 RGB [T, H, W, 3] -> [T, H, W, 2].

    The two channels are pixels to the right and down, times 8, plus 128; larger movements are cut
    off. The last frame has no next one, so rests. (DIS: Kroeger et al., arXiv 1603.03590)
    """
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    method.setFinestScale(FINEST_SCALE)
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames)]
    flow = np.full((*frames.shape[:3], 2), REST, np.uint8)
    for result, grey, next_grey in zip(flow, greys, greys[1:], strict=False):
        pixels = method.calc(grey, next_grey, None)
        result[:] = np.clip(np.rint(pixels * STEPS_A_PIXEL) + REST, 0, 255)
    return flow
