"""Films of a network's first kernels, and of the activations of each stage.

Shapes: C channels, T positions in time, H, W pixels.
"""

import numpy as np

from explaining.pictures import blank, enlarged, heat, write_text

KERNEL_SIDE, GAP, KERNELS_PER_ROW = 48, 4, 8  # pixels
TILE, LABEL_WIDTH, TILES_PER_ROW = 56, 140, 8


def draw_kernels(films: np.ndarray) -> list[np.ndarray]:
    """Draw all kernels in a grid, one picture per time step; most change first, zero is grey.

    films: [kernels, T, H, W, 3]
    """
    change = (films - films.mean(axis=1, keepdims=True)) ** 2
    order = np.argsort(-change.sum((1, 2, 3, 4)), kind="stable")
    films = films[order] / np.abs(films[order]).max((1, 2, 3, 4), keepdims=True).clip(1e-12)
    films = np.rint(127.5 + 127.5 * films).astype(np.uint8)
    return [
        _grid([enlarged(kernel, KERNEL_SIDE) for kernel in moment])
        for moment in films.swapaxes(0, 1)
    ]


def _grid(tiles) -> np.ndarray:
    height, width = tiles[0].shape[:2]
    num_rows = -(-len(tiles) // KERNELS_PER_ROW)
    picture = blank(GAP + num_rows * (height + GAP), GAP + KERNELS_PER_ROW * (width + GAP))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, KERNELS_PER_ROW)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        picture[top : top + height, left : left + width] = tile
    return picture


def draw_activations(
    frames: np.ndarray, outputs: dict[str, np.ndarray], title: str
) -> list[np.ndarray]:
    """Draw a film with one row per stage: name, shape, and the channels with most variance.

    frames: uint8 [T, H, W, 3]; outputs: [C, T, H, W] by stage.
    """
    num_frames = len(frames)
    rows = [
        [_row(name, output, moment, num_frames) for name, output in outputs.items()]
        for moment in range(num_frames)
    ]
    pictures = []
    for frame, stages in zip(frames, rows, strict=True):
        head = blank(2 * TILE, stages[0].shape[1])
        write_text(head, (6, TILE // 2), "input")
        write_text(head, (6, TILE // 2 + 18), ", ".join(map(str, (3, *frames.shape[:3]))), 11)
        shown = enlarged(frame, 2 * TILE - GAP)[:, : head.shape[1] - LABEL_WIDTH]
        head[: shown.shape[0], LABEL_WIDTH : LABEL_WIDTH + shown.shape[1]] = shown
        write_text(head, (LABEL_WIDTH + shown.shape[1] + 12, TILE), title)
        pictures.append(np.concatenate([head, *stages]))
    return pictures


def _row(name, output, moment, num_frames) -> np.ndarray:
    picture = blank(TILE + GAP, LABEL_WIDTH + TILES_PER_ROW * (TILE + GAP))
    write_text(picture, (6, TILE // 2 - 8), name)
    write_text(picture, (6, TILE // 2 + 10), ", ".join(map(str, output.shape)), 11)
    now = output[:, moment * output.shape[1] // num_frames]
    if output[0, 0].size == 1:
        tiles = [_as_cells(now[:, 0, 0], picture.shape[1] - LABEL_WIDTH - GAP, output)]
    else:
        chosen = np.argsort(-output.std((1, 2, 3)), kind="stable")[:TILES_PER_ROW]
        tiles = [heat(_fit(scaled(now[channel], output[channel]))) for channel in chosen]
    left = LABEL_WIDTH
    for tile in tiles:
        picture[: tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1] + GAP
    return picture


def _fit(values) -> np.ndarray:
    """Scale to the height of a tile, and crop the width to its middle."""
    tile = enlarged(values, TILE)
    spare = max(0, tile.shape[1] - TILE) // 2
    return tile[:, spare : spare + TILE]


def _as_cells(values, width, whole) -> np.ndarray:
    """Draw a vector as a row of cells, or as several rows if it is long."""
    num_rows = max(1, round((len(values) * TILE / width) ** 0.5))
    num_columns = -(-len(values) // num_rows)
    cells = np.zeros(num_rows * num_columns)
    cells[: len(values)] = scaled(values, whole)
    lines = np.linspace(0, num_rows, TILE, endpoint=False).astype(int)
    columns = np.linspace(0, num_columns, width, endpoint=False).astype(int)
    return heat(cells.reshape(num_rows, num_columns)[lines][:, columns])


def scaled(values, whole) -> np.ndarray:
    """Scale values to 0..1 by the range of `whole` over time and space."""
    low, high = whole.min(), whole.max()
    return (values - low) / max(high - low, 1e-12)
