# %% [markdown]
# # Why time matters to a convolution
#
# Seven minutes to read, code included, and half a minute of computing on a CPU. You need some
# Python. Run it cell by cell, in an editor or as the notebook `walkthrough.ipynb`, or all at once
# with `python walkthrough.py`. Each `assert` checks what the text says; change things, and see
# which ones fail. Legend: `N` clips, `C` channels or colours, `T` frames, `H` rows, `W` columns.

# %%
# In Colab, enter the address of the repository that this notebook is from, as in
# https://github.com/NAME/PROJECT: this cell clones it, and installs what it needs.
import os
import subprocess
import sys

repository = ""  # @param {type:"string"}
if repository:
    subprocess.run(["git", "clone", "--depth", "1", repository, "project"], check=True)
    os.chdir("project")
    sys.path.insert(0, os.getcwd())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"]
    subprocess.run(pip, check=True)
elif "google.colab" in sys.modules:
    raise SystemExit("Enter the repository's address above, and run this cell again.")

# %%
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

import demo_data
from explaining.pictures import enlarged, save_gif
from model import ConvColumn

torch.set_num_threads(1)  # the networks here are too small for more

# %% [markdown]
# ## 1. A clip is an array
#
# A clip is a stack of pictures, `[T, H, W, C]`. The project draws its own gestures, in opposing
# pairs. Here is such a pair, drawn from the same random seed, side by side in a GIF.

# %%
right = demo_data.draw_clip("Moving Right", np.random.default_rng(343))
left = demo_data.draw_clip("Moving Left", np.random.default_rng(343))
pair = [enlarged(frame, 200) for frame in np.concatenate([right, left], axis=2)]
save_gif(Path("walkthrough.gif"), pair, frame_rate=6)
print(f"walkthrough.gif shows both: {list(right.shape)} numbers each")
assert (left == right[::-1]).all()

# %% [markdown]
# One clip is the other played backwards: the same frames in another order.
#
# **Think:** somebody gives you one frame. Which gesture is it from?
#
# ## 2. A convolution in 2D, by hand
#
# A convolution slides a small grid of numbers, the *kernel*, over a picture. At each position it
# multiplies the kernel with the pixels under it, number by number, and adds up the products. This
# kernel subtracts the pixels on its left from those on its right: it responds to vertical edges.

# %%
edge_kernel = torch.tensor([[-1.0, 0, 1]] * 3)


def small_and_grey(clip):
    """[T, H, W, 3] from 0 to 255 -> [T, 16, 16] from 0 to 1."""
    frames = [cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA) for frame in clip]
    return torch.tensor(np.stack(frames)).float().mean(3) / 255


def convolve(inputs, kernel):
    """One response per position of the kernel: in a picture, or in a clip."""
    responses = torch.zeros([size - 2 for size in inputs.shape])
    for start in np.ndindex(*responses.shape):
        patch = inputs[tuple(slice(first, first + 3) for first in start)]
        responses[start] = (patch * kernel).sum()
    return responses


frame = small_and_grey(right)[7]
print(frame[6:9, 4:7].numpy().round(2), "times", edge_kernel.numpy(), sep="\n")
edges = convolve(frame, edge_kernel)
print(f"is {edges[6, 4]:.2f}; at all positions: {list(frame.shape)} -> {list(edges.shape)}")
assert torch.allclose(edges, F.conv2d(frame[None, None], edge_kernel[None, None])[0, 0], atol=1e-5)

# %% [markdown]
# PyTorch's `conv2d` does what the loop does. And our pair? The same frames give the same responses,
# whichever clip they are from; also in any network that looks at frames one by one.


# %%
def edges_of(clip):
    """How strong the vertical edges of each frame are, [T, H, W]."""
    return F.conv2d(small_and_grey(clip)[:, None], edge_kernel[None, None])[:, 0].abs()


assert torch.equal(edges_of(right), edges_of(left).flip(0))

# %% [markdown]
# **Think:** this kernel compares neighbours in space. How would one compare them in time as well?
#
# ## 3. A convolution in 3D, by hand
#
# Give the kernel a third axis, and let it slide over time, too. This one is three frames deep. A
# bright line that is on its left at first, and on its right two frames later, meets a plus both
# times; one that moves the other way meets a minus twice; if it stays, plus and minus cancel.

# %%
motion_kernel = torch.stack([-edge_kernel, 0 * edge_kernel, edge_kernel])  # [T, H, W]
line = torch.eye(3)[:, None].expand(3, 3, 3)  # vertical, moving right
lines = {"right": line, "left": line.flip(0), "nowhere": line[[1, 1, 1]], "dark, right": 1 - line}
to_lines = {name: convolve(clip, motion_kernel).item() for name, clip in lines.items()}
print("response to a line that moves:", to_lines)
assert to_lines == {"right": 6, "left": -6, "nowhere": 0, "dark, right": -6}

# %% [markdown]
# A *dark* line that moves right looks like a bright one that moves left: the response is the
# product of direction and contrast. So `edges_of` takes absolute values. Still, each edge that
# passes is a strong `right` between weaker `left`s, and added up, most cancels. A second
# *non-linear* step helps: count only strong responses. (In a network: a bias and a ReLU.)


# %%
def direction(clip, threshold=1):
    """Above 0 for movement to the right: the sum of the responses above the threshold."""
    responses = F.conv3d(edges_of(clip)[None, None], motion_kernel[None, None])
    return responses[responses.abs() > threshold].sum().item()


print(
    f"sum of strong responses: right {direction(right):.0f}, left {direction(left):.0f}; "
    f"of all responses: right {direction(right, 0):.0f}, left {direction(left, 0):.0f}"
)
assert direction(right) > 100 > 60 > abs(direction(right, 0)) and direction(left) < -100

# %% [markdown]
# **Think:** left and right are simple enough to choose 9 and 27 numbers by hand. Who chooses them
# for "turning a hand"?
#
# ## 4. A kernel that is learnt
#
# Give PyTorch an input and the wanted output, but not the kernel. Start from random numbers and
# repeat: compute the output, measure how wrong it is (the *loss*), compute for each number of the
# kernel in which direction the loss falls (from its *gradient*), and take a small step.


# %%
def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


torch.manual_seed(0)
noise = torch.randn(1, 1, 16, 16, 16)  # a clip with all kinds of edges and movements
wanted = F.conv3d(noise, motion_kernel[None, None])
learnt = torch.randn(1, 1, 3, 3, 3, requires_grad=True)
optimizer = torch.optim.SGD([learnt], lr=0.05, momentum=0.9)
losses = [step(optimizer, F.mse_loss(F.conv3d(noise, learnt), wanted)) for _ in range(200)]
print("loss in every 20th step:", *np.round(losses[::20], 3))
assert torch.allclose(learnt[0, 0], motion_kernel, atol=0.01)

# %% [markdown]
# **Think:** for real gestures, nobody knows what a layer should output. What else could we ask for?
#
# ## 5. A network that is trained
#
# We can ask for the right class. `ConvColumn` (in `model.py`) stacks 3D convolutions of many
# kernels, and max pooling, which keeps the largest of each 2 × 2 × 2 values, until one vector is
# left. The same steps learn all kernels together; the loss compares the network's scores with the
# class.


# %%
def draw(count, seed):
    """Eight frames of 32 x 32 pixels per clip, float [N, C, T, H, W]; and the classes, int [N]."""
    inputs = []
    for number in range(count):
        gesture = ["Moving Right", "Moving Left"][number % 2]
        clip = demo_data.draw_clip(gesture, np.random.default_rng([seed, number]))
        frames = torch.tensor(clip[np.linspace(0, len(clip) - 1, 8).astype(int)]).movedim(3, 0)
        inputs.append(F.interpolate(frames / 255 - 0.5, (32, 32), mode="area"))
    return torch.stack(inputs), torch.arange(count) % 2


inputs, classes = draw(400, seed=2)
network = ConvColumn(2, (8, 32, 32), block_widths=[8, 16, 32], head_widths=[32, 16], dropout=0.15)
optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
for epoch in range(6):
    losses = [
        step(optimizer, F.cross_entropy(network(inputs[batch]), classes[batch]))
        for batch in torch.randperm(len(inputs)).split(16)
    ]
    print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")
assert np.mean(losses) < 0.4

# %% [markdown]
# **Think:** now play clips backwards to this network. Will it get 50 % right, or something else?
#
# ## 6. Break it
#
# Give it clips that it has not seen: in order, reversed, shuffled, frozen to one frame; and in
# order again, but with each kernel replaced by its average over time.


# %%
@torch.no_grad()
def accuracy(inputs):
    return 100 * (network.eval()(inputs).argmax(1) == classes).float().mean().item()


inputs, classes = draw(160, seed=3)
shuffled = torch.stack([clip[:, torch.randperm(8)] for clip in inputs])
top1 = {
    "in order": accuracy(inputs),
    "reversed": accuracy(inputs.flip(2)),
    "shuffled": accuracy(shuffled),
    "frozen": accuracy(inputs[:, :, [4] * 8]),
}
for layer in network.modules():
    if isinstance(layer, torch.nn.Conv3d):
        layer.weight.data = layer.weight.data.mean(dim=2, keepdim=True).expand_as(layer.weight)
top1["still kernels"] = accuracy(inputs)
for name, share in top1.items():
    print(f"{name:<14}{share:5.1f} % (guessing: 50 %)")
assert top1["in order"] > 80 and top1["reversed"] < 20
assert all(25 < top1[name] < 75 for name in ("shuffled", "frozen", "still kernels"))
assert torch.allclose(network(inputs), network(inputs.flip(2)), atol=1e-4)

# %% [markdown]
# On reversed clips it does not guess, it is *wrong*: it sees the other gesture. On shuffled or
# frozen clips it guesses. With kernels that do not change over time, it cannot tell a clip from its
# reverse: what it has learnt is movement.
#
# From here: `README.md` trains on all eight gestures and on clips of your own, and `explain.py`
# shows where and when a network looks.
