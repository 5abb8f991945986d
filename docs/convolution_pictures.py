"""A 2D kernel that slides over a frame, and a 3D kernel that slides over frames and time.

The frame is one of the built-in data set, shrunk to a few cells of grey values 0 to 9; the clips
are bars that move by one cell per frame. PyTorch computes all outputs, and each can be checked by
hand. T frames, H, W cells.
"""

import cv2
import numpy as np
import torch
from torch.nn.functional import conv2d, conv3d

import demo_data
from docs.svg import Steps, Svg

SEED = 10972  # of the hand in the opening picture
HAND_ROW = 44  # of its middle, in pixels
MIN_CELL_WITH_DIGITS = 24  # pixels
RESULT_LEFT = 520  # of the frames that come out of the 3D kernel, in pixels
BAR_WIDTH, BAR_START = 2, 1  # cells

EDGE_KERNEL = np.array([[-1, 0, 1]] * 3)
# Its two frames cancel wherever nothing moves. [T, H, W]
MOVEMENT_KERNEL = np.stack([-EDGE_KERNEL, EDGE_KERNEL])


# --- the numbers -------------------------------------------------------------------------------


def grey_cells(frames, height, width, cell) -> np.ndarray:
    """Shrink frames [T, H, W, 3] around the hand's path to int [T, height, width] of 0 to 9."""
    left = (frames.shape[2] - width * cell) // 2
    top = HAND_ROW - height * cell // 2
    grey = [
        cv2.resize(
            cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[top:, left:][: height * cell, : width * cell],
            (width, height),
            interpolation=cv2.INTER_AREA,
        ).astype(float)
        for frame in frames
    ]
    dark, bright = np.percentile(grey, [20, 99])
    return np.rint(9 * np.clip((grey - dark) / (bright - dark), 0, 1)).astype(int)


def moving_bar(num_frames=4, height=5, width=8, start=BAR_START) -> np.ndarray:
    """Return a bar of 9s on 0s that moves right by one cell per frame, int [T, H, W]."""
    frames = np.zeros((num_frames, height, width), int)
    for time, frame in enumerate(frames):
        frame[:, start + time : start + time + BAR_WIDTH] = 9
    return frames


def strongest_of(values) -> int:
    """Return the value that is farthest from 0, with its sign."""
    return int(max(values.flat, key=abs))


def slide_2d(frame, kernel) -> np.ndarray:
    """Compute PyTorch's conv2d of one frame: int [H, W] -> [H - 2, W - 2]."""
    return _convolved(conv2d, frame, kernel)


def slide_3d(frames, kernel) -> np.ndarray:
    """Compute PyTorch's conv3d of frames: int [T, H, W] -> [T - 1, H - 2, W - 2]."""
    return _convolved(conv3d, frames, kernel)


def _convolved(convolve, values, kernel) -> np.ndarray:
    inputs, weights = (torch.tensor(array).float()[None, None] for array in (values, kernel))
    return convolve(inputs, weights)[0, 0].round().int().numpy()


def signed(value) -> str:
    return f"{value:+d}".replace("-", "−").replace("+0", "0")


# --- parts of both pictures --------------------------------------------------------------------


def draw_frame(picture, x, y, frame, cell) -> None:
    """Draw grey cells, with their values where there is space."""
    height, width = frame.shape
    picture.rect(x - 1, y - 1, width * cell + 1, height * cell + 1, "#0b0e12", line="edge")
    for (row, column), value in np.ndenumerate(frame):
        grey = round(28 + 212 * value / 9)
        left, top = x + column * cell, y + row * cell
        picture.rect(left, top, cell - 1, cell - 1, f"rgb({grey},{grey},{grey})")
        if cell >= MIN_CELL_WITH_DIGITS:
            colour = "#ffffff" if grey < 128 else "#1f2328"
            picture.text(
                left + cell / 2 - 0.5,
                top + cell / 2 + 4.5,
                value,
                13,
                colour,
                anchor="middle",
                extra=' opacity=".85"',
            )


def draw_result(picture, x, y, values, cell, strongest, steps, first_step) -> None:
    """Draw cells that appear one after the other: blue above 0, orange below."""
    height, width = values.shape
    picture.rect(x - 1, y - 1, width * cell + 1, height * cell + 1, "faint", opacity=0.55)
    for index, value in enumerate(values.flat):
        left, top = x + index % width * cell, y + index // width * cell
        appears = steps.appears(first_step + index)
        picture.open_group(appears)
        picture.rect(left, top, cell - 1, cell - 1, "card")
        share = abs(value) / strongest
        colour = "blue" if value > 0 else "orange"
        picture.rect(left, top, cell - 1, cell - 1, colour, opacity=0.9 * share**1.2)
        if cell >= MIN_CELL_WITH_DIGITS:
            picture.text(
                left + cell / 2 - 0.5,
                top + cell / 2 + 4.5,
                signed(value),
                12,
                "card" if share > 0.7 else "ink",
                anchor="middle",
            )
        picture.close_group()


def draw_numbers(picture, x, y, values, size, steps) -> None:
    """Draw the number at each moment, and at the end the strongest one."""
    strongest = strongest_of(values)
    for step, value in [*enumerate(values.flat), (values.size, strongest)]:
        colour = "blue" if value > 0 else "orange" if value else "ink"
        when = steps.appears(step) if step == values.size else steps.only(step)
        picture.text(x, y, signed(value), size, colour, anchor="middle", bold=True, extra=when)
    picture.text(
        x, y + 20, "strongest", 12, "muted", anchor="middle", extra=steps.appears(values.size)
    )


def draw_kernel(picture, x, y, kernel, cell) -> None:
    """Draw a 3 x 3 kernel of -1, 0 and 1."""
    for (row, column), weight in np.ndenumerate(kernel):
        left, top = x + column * cell, y + row * cell
        colour = {1: "blue", -1: "orange", 0: "faint"}[int(weight)]
        picture.rect(left, top, cell - 1, cell - 1, colour, opacity=0.8 if weight else 1)
        picture.text(
            left + cell / 2 - 0.5,
            top + cell / 2 + 5,
            signed(weight),
            14,
            "card" if weight else "ink",
            anchor="middle",
            bold=True,
        )
    side = 3 * cell
    picture.rect(x - 1, y - 1, side + 1, side + 1, line="ink", line_width=2)


def places(height, width, cell, frames=1, frame_distance=0) -> list[tuple[float, float]]:
    """Return the positions of a sliding kernel, (x, y) in pixels from the first, by frame."""
    return [
        (time * frame_distance + column * cell, row * cell)
        for time in range(frames)
        for row in range(height)
        for column in range(width)
    ]


# --- the pictures ------------------------------------------------------------------------------


def draw_conv2d() -> str:
    """Draw a frame, a 3 x 3 kernel, and the output picture. SVG"""
    clip = demo_data.draw_clip("Moving Right", np.random.default_rng(SEED))
    frame = grey_cells(clip[10:11], 10, 10, 6)[0]
    result = slide_2d(frame, EDGE_KERNEL)
    picture = Svg(
        432,
        "A 3 × 3 kernel slides over one frame; each place gives one number, and all "
        "numbers together are a picture again",
    )
    steps = Steps(picture, result.size)
    cell, top, left, kernel_left, result_left = 30, 66, 24, 376, 526
    result_cell, result_top = 34, 66 + 14
    picture.text(left, 34, "One frame in", 17, bold=True)
    picture.text(left, 53, "10 × 10 grey values of a hand", 13, "muted")
    picture.text(kernel_left - 14, 34, "A 2D kernel", 17, bold=True)
    picture.text(kernel_left - 14, 53, "finds upright edges", 13, "muted")
    picture.text(result_left, 34, "One picture out", 17, bold=True)
    picture.text(result_left, 53, "dark to bright is +, bright to dark is −", 13, "muted")

    draw_frame(picture, left, top, frame, cell)
    slides = steps.moves("slide", places(*result.shape, cell))
    picture.rect(
        left - 1, top - 1, 3 * cell + 1, 3 * cell + 1, line="mark", line_width=4, extra=slides
    )
    draw_kernel(picture, kernel_left, result_top, EDGE_KERNEL, 32)
    middle = kernel_left + 47
    picture.text(middle, result_top + 130, "9 values × 9 weights,", 13, "muted", anchor="middle")
    picture.text(middle, result_top + 148, "added up:", 13, "muted", anchor="middle")
    draw_numbers(picture, middle, result_top + 190, result, 34, steps)
    picture.arrow(kernel_left + 10, result_top + 236, 76)
    draw_result(
        picture, result_left, result_top, result, result_cell, np.abs(result).max(), steps, 0
    )
    picture.rect(
        result_left - 1,
        result_top - 1,
        result_cell + 1,
        result_cell + 1,
        line="mark",
        line_width=4,
        extra=steps.moves("fill", places(*result.shape, result_cell)),
    )
    picture.text(
        left,
        408,
        "Blue is above 0, orange below. Edges are found, but one frame does "
        "not say where the hand is going.",
        14,
    )
    return picture.source()


def colour_patch() -> tuple[np.ndarray, np.ndarray]:
    """Return three cells of blue, then of yellow, int [3, H, W], and a kernel that finds them."""
    yellow = np.array([[0, 4, 9]] * 3)
    return np.stack([yellow, yellow, 9 - yellow]), np.stack(
        [EDGE_KERNEL, EDGE_KERNEL, -EDGE_KERNEL]
    )


def draw_slices() -> str:
    """Draw the slices of a kernel for three input channels, and the sum of their results. SVG"""
    patch, kernel = colour_patch()
    results = (patch * kernel).sum((1, 2))
    total = " + ".join(map(str, results))
    picture = Svg(
        230,
        "A kernel on a colour picture has three slices, one for red, green and blue; the three "
        f"results are added: {total} = {results.sum()}",
    )
    picture.text(24, 34, "One kernel, a slice for each input channel", 17, bold=True)
    picture.text(24, 54, "9 values × 9 weights per channel, all added up", 13, "muted")
    cell, top = 28, 88
    for number, name in enumerate(("red", "green", "blue")):
        left = 24 + 212 * number
        picture.text(left, top - 9, name, 14, bold=True)
        draw_frame(picture, left, top, patch[number], cell)
        picture.text(left + 94, top + 47, "×", 16, anchor="middle")
        draw_kernel(picture, left + 104, top, kernel[number], cell)
        picture.text(left + 94, top + 112, signed(results[number]), 17, "blue", anchor="middle")
        if number < 2:
            picture.text(left + 94 + 106, top + 112, "+", 17, anchor="middle")
    picture.arrow(652, top + 42, 34)
    picture.text(748, top + 42, signed(results.sum()), 24, "blue", anchor="middle", bold=True)
    picture.text(748, top + 66, "one number of one", 13, "muted", anchor="middle")
    picture.text(748, top + 83, "output channel", 13, "muted", anchor="middle")
    return picture.source()


def bar_clips() -> dict[str, tuple[np.ndarray, str]]:
    """Return clips of a bar, int [T, H, W], by name; and names of their outputs, frame by frame."""
    right = moving_bar()
    return {
        "A bright bar moves right": (right, "a b c"),
        "The same frames backwards: it moves left": (right[::-1], "−c −b −a"),
        "It does not move": (right[[1] * len(right)], "0 0 0"),
        "A dark bar moves right": (9 - right, "−a −b −c"),
    }


def draw_conv3d() -> str:
    """Draw clips of a bar, a kernel of two frames, and the output clips. SVG"""
    clips = bar_clips()
    results = {
        name: slide_3d(frames.copy(), MOVEMENT_KERNEL) for name, (frames, _) in clips.items()
    }
    numbers = [signed(strongest_of(result)) for result in results.values()]
    picture = Svg(
        660,
        "A kernel of two frames slides over four clips in space and time; its "
        f"strongest outputs are {', '.join(numbers)}",
    )
    steps = Steps(picture, results["A bright bar moves right"].size)
    strongest = max(np.abs(result).max() for result in results.values())
    _draw_kernel_over_time(picture)
    for number, (name, (frames, outputs)) in enumerate(clips.items()):
        y = 252 + number * 98
        _draw_clip_row(picture, y, name, frames, results[name], steps, strongest)
        for time, output in enumerate(outputs.split()):
            picture.text(
                RESULT_LEFT + 98 * time + 45, y - 9, output, 15, anchor="middle", bold=True
            )
    picture.text(
        24,
        640,
        "Blue is above 0, orange below. The sign is direction times contrast: "
        "bright to the left is −54, too.",
        14,
    )
    return picture.source()


def sum_over_time() -> list[str]:
    """Return the sum at the strongest output as text, one line per frame."""
    result = slide_3d(moving_bar(2), MOVEMENT_KERNEL)
    patches = moving_bar(2)[:, :3, BAR_START : BAR_START + 3]
    lines, sums = [], []
    for name, patch, kernel in zip(("earlier", "later"), patches, MOVEMENT_KERNEL, strict=True):
        products = " + ".join(
            f"{weight}×{value}" for weight, value in zip(kernel[0], patch[0], strict=True)
        ).replace("-", "−")
        sums.append(int((patch * kernel).sum()))
        lines.append(f"{name} frame: 3 rows of {products}, together {sums[-1]}")
    assert sum(sums) == result.max()
    return [*lines, f"both frames: {sums[0]} + {sums[1]} = {sum(sums)}"]


def _draw_kernel_over_time(picture) -> None:
    picture.text(24, 34, "A 3D kernel", 17, bold=True)
    picture.text(24, 53, "3 × 3 cells of 2 frames", 14, "muted")
    for number, (kernel, name) in enumerate(
        zip(MOVEMENT_KERNEL, ("earlier frame", "later frame"), strict=True)
    ):
        draw_kernel(picture, 24 + number * 126, 66, kernel, 30)
        picture.text(69 + number * 126, 174, name, 14, "muted", anchor="middle")
    picture.path("M114.5 66h34M114.5 155.5h34", "ink", 2, opacity=0.5)
    lines = (
        "It slides over the frames and over time. At each place",
        "18 values × 18 weights are added up to one output.",
        "Where the bar begins, for example (black is 0, white 9):",
        *sum_over_time(),
    )
    for number, line in enumerate(lines):
        picture.text(300, 70 + 21 * number, line, 14, "ink" if number < 3 else "blue")
    picture.text(24, 218, "Four frames in", 17, bold=True)
    picture.text(RESULT_LEFT, 218, "Three frames out", 17, bold=True)


def _draw_clip_row(picture, y, name, frames, results, steps, strongest) -> None:
    """Draw frames at the left, the number of the moment, and the output frames."""
    cell, distance, left = 12, 104, 24
    result_cell, result_distance, result_top = 15, 98, y + 6
    picture.text(left, y - 9, name, 14)
    for time, frame in enumerate(frames):
        draw_frame(picture, left + time * distance, y, frame, cell)
    num_frames, height, width = results.shape
    side = 3 * cell
    kernel_places = places(height, width, cell, num_frames, distance)
    picture.open_group(steps.moves("slide", kernel_places))
    across = distance - side
    picture.rect(left + side, y - 1, across, side + 1, "mark", opacity=0.28)
    for x in (left, left + distance):
        picture.rect(x - 1, y - 1, side + 1, side + 1, line="mark", line_width=3.5)
    picture.close_group()

    draw_numbers(picture, 480, y + 40, results, 24, steps)
    for time, result in enumerate(results):
        draw_result(
            picture,
            RESULT_LEFT + time * result_distance,
            result_top,
            result,
            result_cell,
            strongest,
            steps,
            time * height * width,
        )
    fill_places = places(height, width, result_cell, num_frames, result_distance)
    picture.rect(
        RESULT_LEFT - 1,
        result_top - 1,
        result_cell + 1,
        result_cell + 1,
        line="mark",
        line_width=3,
        extra=steps.moves("fill", fill_places),
    )
