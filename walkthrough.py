# %% [markdown]
# # Why time matters to a convolution
#
# Ten minutes, on a CPU. You need some Python, and to know that to a computer a picture is a grid of
# numbers. In step 2 you build a convolution yourself.
#
# Open this file in VS Code, Spyder or (with jupytext) Jupyter, in the project's folder, and run it
# cell by cell; or all at once with `python walkthrough.py`. Each step shows something small and
# ends with a question. Think about it before you go on: what follows answers it. Each `assert`
# checks that what was said is true. Change things, and see which ones break. They allow a range of
# accuracies, since processors round differently and so train to slightly different figures.
#
# Legend: `T` frames, `H` rows, `W` columns, `C` colours or channels, `N` clips.

# %%
import argparse
import copy
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

import demo_data
from clips.annotations import read_annotations
from clips.batches import batches_of
from clips.frames import prepare_decoders
from config import Config
from data_loader import build_loader
from explaining import layer_films, time_probe
from explaining.layers import first_kernels, share_of_change
from explaining.pictures import enlarged, save_gif
from model import build_model, shape_after_block
from networks.stages import describe
from scoring.predictor import Predictor
from system.device import to_network_input
from system.errors import UserError, check_system

try:
    from IPython import get_ipython
    from IPython.display import Image, display
    in_notebook = get_ipython() is not None
except ImportError:
    in_notebook = False

parser = argparse.ArgumentParser(description="Why time matters to a convolution, step by step.")
parser.add_argument("--output", type=Path, default="walkthrough_pictures", metavar="FOLDER",
                    help="folder for the pictures (%(default)s)")
parser.add_argument("--quick", action="store_true",
                    help="fewer clips and less exact figures, in a third of the time")
options = parser.parse_args([] if in_notebook else None)
try:
    check_system()
    options.output.mkdir(parents=True, exist_ok=True)
except UserError as error:
    parser.error(str(error))
except OSError as error:
    parser.error(f"--output {options.output}: cannot be created ({error.strerror}); name another")
torch.set_num_threads(1)  # the networks here are too small for more
prepare_decoders()


def show(name, film, height=200, frame_rate=6):
    """Saves pictures, uint8 [T, H, W, 3], as a GIF; a notebook plays it, too."""
    path = options.output / name
    save_gif(path, [enlarged(picture, height) for picture in film], frame_rate)
    print(f"a film of it: {path}")
    if in_notebook:
        display(Image(filename=path))


def print_side_by_side(*pictures):
    """Grids of numbers [H, W] as text: the higher the number, the denser the sign."""
    low, high = np.min(pictures), np.max(pictures)
    signs = np.array(list(" .:-=+*#%@"))
    for rows in np.moveaxis((np.array(pictures) - low) / (high - low) * 9.99, 0, 1):
        print("  ".join("".join(np.repeat(signs[row.astype(int)], 2)) for row in rows))


# %% [markdown]
# ## 1. A clip is an array
#
# A clip is a stack of pictures: `[T, H, W, C]`. The project draws its own gestures, in opposing
# pairs. Here is such a pair, drawn from the same random seed.

# %%
right = demo_data.draw_clip("Moving Right", np.random.default_rng(343))
left = demo_data.draw_clip("Moving Left", np.random.default_rng(343))
print("[T, H, W, C] =", list(right.shape), right.dtype)
show("1_pair.gif", np.concatenate([right, left], axis=2))


def small_and_grey(clip):
    """[T, H, W, 3] from 0 to 255 -> [T, 16, W] from 0 to 1: small enough to look at."""
    width = round(clip.shape[2] * 16 / clip.shape[1])
    frames = [cv2.resize(frame, (width, 16), interpolation=cv2.INTER_AREA) for frame in clip]
    return np.stack(frames).mean(axis=3, dtype=np.float32) / 255


right_grey, left_grey = small_and_grey(right), small_and_grey(left)
print("Moving Right, small and grey: frames 2, 8 and 14")
print_side_by_side(*right_grey[[1, 7, 13]])

assert (left == right[::-1]).all()

# %% [markdown]
# As the assertion says, one clip is the other played backwards. They consist of the same frames,
# bit for bit, and differ only in their order.
#
# **Think:** somebody gives you one frame. Which gesture is it from?
#
# ## 2. A convolution in 2D, by hand
#
# A convolution slides a small grid of numbers, the *kernel*, over a picture. At each position it
# multiplies the kernel with the pixels under it, number by number, and adds up the products: its
# response. This kernel subtracts the pixels on the left of a position from those on the right, so
# it responds to vertical edges.

# %%
edge_kernel = np.array([[-1, 0, 1]] * 3, np.float32)


def convolve_2d(picture, kernel):
    """[H, W] -> [H - 2, W - 2]: one response per position at which the 3 x 3 kernel fits."""
    height, width = picture.shape
    responses = np.zeros((height - 2, width - 2), np.float32)
    for y in range(height - 2):
        for x in range(width - 2):
            responses[y, x] = (picture[y : y + 3, x : x + 3] * kernel).sum()
    return responses


frame = right_grey[7]
print("the kernel, and the pixels under it at row 6 and column 4:")
print(np.hstack([edge_kernel, frame[6:9, 4:7]]).round(2))
print(f"multiplied and added up: {(frame[6:9, 4:7] * edge_kernel).sum():.2f}\n")
edges = convolve_2d(frame, edge_kernel)
print(f"all positions, {frame.shape} -> {edges.shape}: the frame, and how strong its edges are")
brightness, strength = frame[1:-1, 1:-1] - frame.min(), np.abs(edges)
print_side_by_side(brightness / brightness.max(), strength / strength.max())

with_pytorch = F.conv2d(torch.tensor(frame)[None, None], torch.tensor(edge_kernel)[None, None])
assert np.allclose(edges, with_pytorch[0, 0], atol=1e-5)  # PyTorch does what the loops do

# %% [markdown]
# And our pair? The same frames give the same responses, whichever clip they are from: the two sets
# of responses are equal. So are the averages of any network, however deep, that looks at frames one
# by one.

# %%
right_edges = np.stack([np.abs(convolve_2d(frame, edge_kernel)) for frame in right_grey])
left_edges = np.stack([np.abs(convolve_2d(frame, edge_kernel)) for frame in left_grey])
print("sum of the edges of each frame")
print("  right:", *right_edges.sum((1, 2)).round().astype(int))
print("  left: ", *left_edges.sum((1, 2)).round().astype(int))

assert sorted(map(bytes, right_edges)) == sorted(map(bytes, left_edges))

# %% [markdown]
# **Think:** this kernel compares neighbours in space. How would one compare them in time as well?
#
# ## 3. A convolution in 3D, by hand
#
# Give the kernel a third axis, and let it slide over time, too. This one is three frames deep. An
# edge that is on its left at first, and on its right two frames later, meets a plus both times; one
# that moves the other way meets a minus twice; and for one that stays, plus and minus cancel.

# %%
motion_kernel = np.zeros((3, 3, 3), np.float32)  # [T, H, W]
motion_kernel[0] = [1, 0, -1]
motion_kernel[2] = [-1, 0, 1]


def convolve_3d(film, kernel):
    """[T, H, W] -> [T - 2, H - 2, W - 2]: the same loops, and one more."""
    responses = np.zeros(np.array(film.shape) - 2, np.float32)
    for t, y, x in np.ndindex(responses.shape):
        responses[t, y, x] = (film[t : t + 3, y : y + 3, x : x + 3] * kernel).sum()
    return responses


line = np.repeat(np.eye(3, dtype=np.float32)[:, None], 3, axis=1)  # vertical, moving right
lines = {"right": line, "left": line[::-1], "nowhere": line[[1, 1, 1]]}
to_lines = {where: convolve_3d(film, motion_kernel).item() for where, film in lines.items()}
print("its response to a line that moves:", to_lines)

right_motion = convolve_3d(right_edges, motion_kernel)
left_motion = convolve_3d(left_edges, motion_kernel)
moment = right_motion[right_motion.max((1, 2)).argmax()]
print(f"\nour clip moving right, edges {right_edges.shape} -> responses {right_motion.shape}")
print("one moment of it: responses for `right` (above 0), and for `left` (below 0)")
print_side_by_side(np.maximum(moment, 0), np.maximum(-moment, 0))

with_pytorch = F.conv3d(torch.tensor(right_edges)[None, None],
                        torch.tensor(motion_kernel)[None, None])
assert np.allclose(right_motion, with_pytorch[0, 0], atol=1e-5)
assert to_lines == {"right": 6, "left": -6, "nowhere": 0}

# %% [markdown]
# Each edge that passes is a strong `right` between weaker `left`s. Added up, they cancel: nearly
# every number of the clip meets each number of the kernel once, and the kernel's numbers add up to
# 0. Something *non-linear* is needed in between: count only strong responses. (In a network, that
# is a bias and a ReLU after the convolution. Without, a hundred layers could do no more than one.)

# %%
def strong(responses):
    return responses[np.abs(responses) > 1].sum()


def direction(clip, add_up):
    """Steps 2 and 3 with PyTorch: from a clip [T, H, W, 3] to one number."""
    frames = torch.tensor(small_and_grey(clip))[:, None]  # [T, 1, H, W]
    edges = F.conv2d(frames, torch.tensor(edge_kernel)[None, None]).abs()
    film = edges.transpose(0, 1)  # [1, T, H, W]
    return add_up(F.conv3d(film, torch.tensor(motion_kernel)[None, None]).numpy())


print(f"sum of strong responses: right {strong(right_motion):.1f}, left {strong(left_motion):.1f}")
signs = np.tile([1, -1], 20)  # right, left, right, left ...
others = [demo_data.draw_clip("Moving Right" if sign > 0 else "Moving Left",
                              np.random.default_rng([1, seed])) for seed, sign in enumerate(signs)]
plain, by_hand = (100 * np.mean([direction(clip, add_up) for clip in others] * signs > 0)
                  for add_up in (np.sum, strong))
print(f"40 other clips: the sum of all responses has the right sign for {plain:.1f} %, "
      f"that of the strong ones for {by_hand:.1f} %")
red, blue = (np.clip(80 * part, 0, 255) for part in (right_motion, -right_motion))
show("3_motion.gif", np.stack([red, 0 * red, blue], axis=3).astype(np.uint8))  # right, left

assert strong(right_motion) > 0 > strong(left_motion)
assert np.isclose(strong(right_motion), -strong(left_motion), rtol=1e-3)
assert by_hand == 100

# %% [markdown]
# Two convolutions, each followed by a non-linearity, recognise the gesture without any training.
#
# **Think:** left and right are simple enough to choose 9 and 27 numbers by hand. Who chooses them
# for "turning a hand"?
#
# ## 4. Many kernels, and shapes that shrink
#
# Training does. `ConvColumn` (in `model.py`) stacks blocks of 3D convolutions, each with many
# kernels, one per output *channel*. In a block, a convolution with kernels of 2 x 3 x 3 removes one
# frame, two rows and two columns; a second one pads its input with zeros, which adds the frame
# again; then max pooling keeps the largest of each 2 x 2 x 2 values. So each block roughly halves
# `T`, `H` and `W`. The last kernel covers all that is left, and the result is `[C, 1, 1, 1]`: one
# vector for the whole clip, without any position in space or time.

# %%
PAIR = ["Moving Right", "Moving Left"]
folder = tempfile.TemporaryDirectory()  # gone when Python ends
settings = {  # as in a config file; config.py explains every key
    "model_name": "walkthrough",
    "train_data_folder": f"{folder.name}/frames", "train_data_csv": f"{folder.name}/train.csv",
    "val_data_folder": f"{folder.name}/frames", "val_data_csv": f"{folder.name}/validation.csv",
    "labels_csv": f"{folder.name}/labels.csv", "num_workers": 0, "batch_size": 16,
    "clip_size": 8, "step_size": 2, "frame_height": 40, "crop_size": 32,
    "block_widths": [8, 16, 32], "head_widths": [32, 16], "precision": "fp32",
}  # fmt: skip
config = Config(**settings)
torch.manual_seed(0)
network = build_model(config, num_classes=2).eval()
print(describe(network, (8, 32, 32)))

numbers = torch.zeros(1, 3, 8, 32, 32)  # [N, C, T, H, W]
for block in network.blocks:
    expected = shape_after_block(numbers.shape[2:])
    numbers = block(numbers)
    assert numbers.shape[2:] == expected
assert network.last_conv(numbers).shape == (1, 32, 1, 1, 1)

# %% [markdown]
# **Think:** 41,202 parameters to train, all random so far. How often is such a network right?
#
# ## 5. Train it
#
# Clips of the two gestures are written to a temporary folder, as JPEG frames with a CSV of
# `id;label` lines, the layout that your own clips would have. The project's loader takes every
# second frame, rotates and shifts each training clip a little, and crops 32 x 32 pixels.

# %%
def draw_set(name, count):
    """Writes `count` clips of each gesture, and their CSV; returns its annotations."""
    frames, lines = Path(folder.name, "frames"), []
    for index in range(count * len(demo_data.GESTURES)):
        gesture = demo_data.GESTURES[index % len(demo_data.GESTURES)]  # in turn
        if gesture in PAIR:
            demo_data.write_clip(frames / f"{name}{index}", 0, name, index)
            lines.append(f"{name}{index};{gesture}\n")
    csv_path = Path(folder.name, f"{name}.csv")
    csv_path.write_text("".join(lines))
    return read_annotations(csv_path, frames, PAIR)


train_set = draw_set("train", 32 if options.quick else 100)
validation_set = draw_set("validation", 24 if options.quick else 80)
print(f"{len(train_set)} clips for training, and {len(validation_set)} for validation")

# %% [markdown]
# Training repeats three steps: give the network some clips and measure how wrong it is (the
# *loss*), compute for each parameter which direction reduces the loss, and take a small step in it.

# %%
CPU = torch.device("cpu")


def train(network, config, num_epochs):
    loader = build_loader(train_set, config, training=True, device=CPU)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    network.train()
    for epoch in range(num_epochs):
        loader.batch_sampler.start_at(epoch, 0)  # each epoch has its own order
        losses = []
        for batch in batches_of(loader):
            clips = to_network_input(batch.clips[:, 0], CPU, config)  # [N, 3, T, H, W]
            loss = F.cross_entropy(network(clips), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1:>2}: loss {np.mean(losses):.3f}")


def probe(network, config):
    """Predictions for the validation clips, with their frames in several orders."""
    return time_probe.probe(Predictor(config, PAIR, network.eval(), CPU, 0), validation_set)


num_epochs = 14 if options.quick else 10
untrained, change_before = probe(network, config), share_of_change(*first_kernels(network).values())
print("eight frames of each clip")
train(network, config, num_epochs)
trained = probe(network, config)

one_frame_config = Config(**settings | {"clip_size": 1})
torch.manual_seed(0)
one_frame_network = build_model(one_frame_config, num_classes=2)
print("one frame of each clip, everything else the same")
train(one_frame_network, one_frame_config, num_epochs)
one_frame = probe(one_frame_network, one_frame_config)

print("top-1 in % of the validation clips (guessing: 50)")
for name, result in (("untrained", untrained), ("eight frames", trained), ("one frame", one_frame)):
    print(f"  {name:<14}{result.accuracy('in order'):5.1f}")

assert trained.accuracy("in order") > 75
assert 25 < one_frame.accuracy("in order") < 75

# %% [markdown]
# **Think:** now play the clips backwards to the well-trained network. 50 %, or something else?
#
# ## 6. Break it
#
# The same clips with their frames in another order: reversed, shuffled, and frozen to one frame.

# %%
print(time_probe.table(trained))

assert trained.accuracy("reversed") < 25
assert 25 < trained.accuracy("shuffled") < 75
assert 25 < trained.accuracy("frozen") < 75

# %% [markdown]
# On reversed clips it does not guess, it is *wrong*: such a clip shows the other gesture, and that
# is its prediction. On shuffled or frozen clips it guesses. What it has learnt is movement.
#
# **Think:** which of its 41,202 parameters make it sensitive to time?
#
# ## 7. Look inside
#
# A kernel of two frames is a still picture plus a change. `share_of_change` gives the share of the
# change. Two random pictures differ as much as they agree: about half of it, before training.

# %%
(kernels,) = first_kernels(network).values()
print(f"change over time in the first kernels: {change_before:.0f} % before training, "
      f"{share_of_change(kernels):.0f} % after")
show("7_kernels.gif", layer_films.draw_kernels(kernels.numpy()), height=112, frame_rate=2)

assert 40 < change_before < 65

# %% [markdown]
# So this figure alone proves little: random kernels have change, too. Take it away, then: replace
# each kernel by its average over time, a still picture, and leave everything else as trained.

# %%
still_network = copy.deepcopy(network)
for layer in still_network.modules():
    if isinstance(layer, torch.nn.Conv3d):
        layer.weight.data = layer.weight.data.mean(dim=2, keepdim=True).expand_as(layer.weight)
still = probe(still_network, config)
print(f"in order: {trained.accuracy('in order'):.1f} % with change in the kernels, "
      f"{still.accuracy('in order'):.1f} % without")

clips = torch.randn(4, 3, 8, 32, 32)  # any clips will do, even noise
with torch.no_grad():
    assert torch.allclose(still_network(clips), still_network(clips.flip(2)), atol=1e-4)
    assert not torch.allclose(network(clips), network(clips.flip(2)), atol=1e-4)
assert 25 < still.accuracy("in order") < 75

# %% [markdown]
# The 50 % might just be damage, since we changed the kernels after training. The assertions say
# more: without change in its kernels, the network gives the same output for a clip and its reverse.
#
# Where to go from here: `README.md` trains on all eight gestures, on Jester, and on clips of your
# own. `model.py` has the network, `train.py` the full training loop, and `demo_data.py` draws the
# gestures, which no single frame gives away. `explain.py` shows where and when a network looks.

# %%
print(f"""
the result in five numbers: top-1 in % (guessing: 50)
  two kernels chosen by hand   {by_hand:5.1f}
  trained on eight frames      {trained.accuracy("in order"):5.1f}
  ... with frames shuffled     {trained.accuracy("shuffled"):5.1f}
  ... with frames reversed     {trained.accuracy("reversed"):5.1f}
  trained on one frame         {one_frame.accuracy("in order"):5.1f}""")
