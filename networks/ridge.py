"""Ridge regressions, which training fits in closed form: of pixels, and of a 2D network's maps.

Shapes: N clips, C channels, T frames, h, w places of a map, D inputs of a model.
"""

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from config import Config
from networks.backbones import build_map_backbone
from networks.frame_networks import FrameNetwork

NUM_FRAMES = 8
SIDE = 16  # pixels of a linear model's frames
PENALTIES = np.logspace(-2, 5, 15)  # among which the linear model's is chosen
PLACES = 3  # of a map: 3 x 3
MAX_WINDOWS, MAX_COMPONENTS, KERNEL_PENALTY = 3000, 512, 0.01  # of the kernel model
MAX_LOG_SCALE = 6.0
NUM_FOLDS = 5


class LinearModel(nn.Module):
    """Ridge regression of the classes on 8 frames of 16 x 16 grey values.

    It is a weighted sum of pixels. `fit` sets its weights and the scale of its logits; gradient
    descent moves neither.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.classifier, self.log_scale = fitted_layers(NUM_FRAMES * SIDE**2, num_classes)

    def inputs(self, clips) -> torch.Tensor:
        """Return the model's inputs: [N, C, T, H, W] -> [N, D]."""
        grey = clips[:, :3].mean(1)  # [N, T, H, W]
        num_frames = grey.shape[1]
        places = ((torch.arange(NUM_FRAMES, device=clips.device) + 0.5) * num_frames) // NUM_FRAMES
        return F.adaptive_avg_pool2d(grey[:, places.long()], SIDE).flatten(1)

    def forward(self, clips):
        return self.classifier(self.inputs(clips)) * self.log_scale.exp()

    @torch.no_grad()
    def fit(self, inputs, labels, clips, groups=None, is_balanced: bool = False) -> None:
        """Set the weights, and the scale of the logits by cross-validation.

        inputs: float32 [N, D]; labels: int [N]; clips: int [N], the index of each input's clip;
        groups: [N], which are held out as a whole; None: each clip is one. is_balanced: all classes
        count equally, however many inputs they have. The penalty is chosen by leave-one-out
        validation.
        """
        from sklearn.linear_model import RidgeCV  # here, since it takes a second to import

        inputs, targets = inputs.astype(np.float64), one_hot(labels, self.classifier.out_features)
        weights = balanced_weights(labels) if is_balanced else None
        ridge = RidgeCV(alphas=PENALTIES).fit(inputs, targets, weights)
        self.classifier.weight.copy_(torch.from_numpy(ridge.coef_))
        self.classifier.bias.copy_(torch.from_numpy(ridge.intercept_))
        refit = RidgeCV(alphas=[ridge.alpha_])
        scores = held_out(refit, inputs, targets, held_out_together(clips, groups), weights)
        self.log_scale.fill_(best_log_scale(scores, labels))


class KernelRidge(FrameNetwork):
    """Kernel ridge regression of the classes on the maps of a 2D network.

    Maps are pooled to 3 x 3 places, and interpolated to 8 frames; they are standardized, and
    projected on their principal components. A clip's logits are a weighted sum of its similarities,
    by a Gaussian kernel, to windows of the training clips. So each place and each part of a clip
    counts for itself. `fit` sets all but the backbone, and gradient descent moves nothing.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.backbone, (_, channels, *sides) = build_map_backbone(config)
        self.backbone.requires_grad_(False)  # the maps that it was fitted on must not change
        self.is_centered = config.center_features
        self.places = tuple(min(PLACES, side) for side in sides)
        num_inputs = NUM_FRAMES * channels * self.places[0] * self.places[1]
        num_components = min(MAX_COMPONENTS, num_inputs)
        self.register_buffer("mean", torch.zeros(num_inputs))
        self.register_buffer("projection", torch.zeros(num_inputs, num_components))
        self.register_buffer("windows", torch.zeros(MAX_WINDOWS, num_components))
        self.classifier, self.log_scale = fitted_layers(MAX_WINDOWS, num_classes)

    def inputs(self, features) -> torch.Tensor:
        """Return the model's inputs: [N, T, C, h, w] -> [N, D]."""
        maps = features.float()
        if self.is_centered:
            maps = maps - maps.mean(1, keepdim=True)
        num_clips, num_frames = maps.shape[:2]
        pooled = F.adaptive_avg_pool2d(maps.flatten(0, 1), self.places)
        series = pooled.flatten(1).unflatten(0, (num_clips, num_frames)).transpose(1, 2)
        return F.interpolate(series, NUM_FRAMES, mode="linear").flatten(1)

    def classify_features(self, features):
        with in_fp32(features.device):  # small differences of large numbers
            vectors = (self.inputs(features) - self.mean) @ self.projection
            squares = vectors.square().sum(1, keepdim=True) + self.windows.square().sum(1)
            distances = squares - 2 * vectors @ self.windows.T
            return self.classifier((distances / -2).exp()) * self.log_scale.exp()

    @torch.no_grad()
    def fit(self, inputs, labels, clips, groups=None, is_balanced: bool = False) -> None:
        """Set the projection and the weights, and the scale of the logits by cross-validation.

        inputs: float32 [N, D], N up to MAX_WINDOWS; labels: int [N]; clips: int [N], the index of
        each input's clip; groups: [N], which are held out as a whole; None: each clip is one.
        is_balanced: all classes count equally, however many inputs they have.
        """
        assert len(inputs) <= MAX_WINDOWS
        from sklearn.kernel_ridge import KernelRidge as Regression
        from sklearn.utils.extmath import randomized_svd

        mean, std = inputs.mean(0), inputs.std(0)
        std = (std + 1e-3 * inputs.std() + 1e-12) * len(std) ** 0.5  # so distances are about 1
        standardized = inputs - mean
        standardized /= std
        num_components = min(*standardized.shape, self.projection.shape[1])
        _, _, axes = randomized_svd(standardized, num_components, random_state=0)
        vectors = (standardized @ axes.T).astype(np.float64)
        for values in (self.projection, self.windows, self.classifier.weight):
            values.zero_()
        self.mean.copy_(torch.from_numpy(mean))
        self.projection[:, :num_components] = torch.from_numpy(axes.T / std[:, None])
        self.windows[: len(vectors), :num_components] = torch.from_numpy(vectors)

        targets = one_hot(labels, self.classifier.out_features)
        versions = len(clips) / len(set(clips.tolist()))
        regression = Regression(alpha=KERNEL_PENALTY * versions, kernel="rbf", gamma=0.5)
        weights = balanced_weights(labels) if is_balanced else None
        offset = np.average(targets, axis=0, weights=weights)
        regression.fit(vectors, targets - offset, weights)
        self.classifier.weight[:, : len(vectors)] = torch.from_numpy(regression.dual_coef_.T)
        self.classifier.bias.copy_(torch.from_numpy(offset))
        together = held_out_together(clips, groups)
        scores = held_out(regression, vectors, targets - offset, together, weights)
        self.log_scale.fill_(best_log_scale(scores + offset, labels))


def in_fp32(device):
    """Return a context without autocast; the meta device has none."""
    is_meta = device.type == "meta"
    return nullcontext() if is_meta else torch.autocast(device.type, enabled=False)


def fitted_layers(num_inputs, num_classes) -> tuple[nn.Linear, nn.Parameter]:
    """Return a classifier of zeros, which is not trained, and the scale of its logits."""
    classifier = nn.Linear(num_inputs, num_classes).requires_grad_(False)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier, nn.Parameter(torch.zeros(()))


def one_hot(labels, num_classes) -> np.ndarray:
    """Return 1 for the class of each label and -1 for the others, float64 [N, classes]."""
    return 2 * np.eye(num_classes)[labels] - 1


def balanced_weights(labels) -> np.ndarray:
    """Return a weight for each label, so that all classes count equally, float64 [N]; mean: 1."""
    weights = 1 / np.bincount(labels)[labels]
    return weights / weights.mean()


def fitted_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a network that `fit` sets, by their names in its `state_dict`."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in network.named_modules()
        if isinstance(module, LinearModel | KernelRidge)
        for name, value in module.state_dict(keep_vars=True).items()
        if not name.startswith("backbone.")
    }


def held_out_together(clips, groups) -> np.ndarray:
    """Return the groups, or the clips if there are fewer than two groups. clips, groups: [N]."""
    return clips if groups is None or len(np.unique(groups)) < 2 else groups


def held_out(regression, inputs, targets, groups, weights=None) -> np.ndarray:
    """Return the scores of each input by a model that was not fitted on its group, [N, classes].

    regression: of scikit-learn; groups: [N]; weights: of the inputs, [N], or None.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    num_folds = min(NUM_FOLDS, len(names))
    fold_of = (np.random.default_rng(0).permutation(len(names)) % num_folds)[group_of]
    scores = np.zeros(targets.shape)
    for fold in range(num_folds if num_folds > 1 else 0):
        is_train = fold_of != fold
        own = None if weights is None else weights[is_train]
        regression.fit(inputs[is_train], targets[is_train], own)
        scores[~is_train] = regression.predict(inputs[~is_train])
    return scores


def best_log_scale(scores, labels) -> float:
    """Return the logarithm of the factor that makes softmax(factor x scores) most likely."""
    from scipy.optimize import minimize_scalar

    scores, labels = torch.from_numpy(scores), torch.from_numpy(np.asarray(labels, np.int64))

    def loss(log_scale):
        return F.cross_entropy(scores * float(np.exp(log_scale)), labels).item()

    return float(minimize_scalar(loss, bounds=(0, MAX_LOG_SCALE), method="bounded").x)
