"""The plain way: loader, training step and evaluation as a tutorial writes them.

The benchmarks compare with it; the program does not import it.
"""

import os

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms


class PlainVideoFolder(Dataset):
    """Clips as float tensors [C, T, H, W], each frame transformed separately with torchvision.

    clips: list of (id, label). The affine transform is drawn once per frame.
    """

    def __init__(self, folder, clips, clip_size, step_size, crop_size, training=True):
        self.folder, self.clips = folder, clips
        self.clip_size, self.step_size = clip_size, step_size
        normalize = [
            transforms.CenterCrop(crop_size),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
        affine = [transforms.RandomAffine(degrees=[-10, 10], translate=[0.15, 0.15])]
        self.transform = transforms.Compose(affine + normalize if training else normalize)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        clip_id, label = self.clips[index]
        folder = os.path.join(self.folder, clip_id)
        names = sorted(os.listdir(folder))
        names += names[-1:] * (self.clip_size * self.step_size - len(names))
        chosen = names[: self.clip_size * self.step_size : self.step_size]
        frames = [
            self.transform(Image.open(os.path.join(folder, name)).convert("RGB")) for name in chosen
        ]
        return torch.stack(frames).permute(1, 0, 2, 3), label


def plain_step(model, optimizer, clips, labels):
    """Do a training step in fp32 with contiguous tensors; read the loss, as progress lines do."""
    model.train()
    loss = nn.functional.cross_entropy(model(clips), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def plain_evaluation(model, clips):
    """Return logits in fp32, with contiguous tensors and without gradients."""
    model.eval()
    with torch.no_grad():
        return model(clips)
