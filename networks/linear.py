"""A linear model of small grey frames, which training fits in closed form.

Shapes: N clips, C channels, T frames, H, W pixels, D = NUM_FRAMES x SIDE x SIDE inputs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from config import Config

NUM_FRAMES, SIDE = 8, 16
PENALTIES = np.logspace(-2, 5, 15)
MAX_LOG_SCALE = 6.0
NUM_FOLDS = 5


class LinearModel(nn.Module):
    """Ridge regression of the classes on 8 frames of 16 x 16 grey values.

    It is a weighted sum of pixels. `fit` sets its weights; gradient descent trains only the scale
    of its logits, and only if the model is on its own.
    """

    def __init__(self, config: Config, num_classes):
        super().__init__()
        self.classifier = nn.Linear(NUM_FRAMES * SIDE * SIDE, num_classes).requires_grad_(False)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=config.model == "linear")

    def inputs(self, clips) -> torch.Tensor:
        """Return the model's inputs: [N, C, T, H, W] -> [N, D]."""
        grey = clips[:, :3].mean(1)  # [N, T, H, W]
        num_frames = grey.shape[1]
        places = ((torch.arange(NUM_FRAMES, device=clips.device) + 0.5) * num_frames) // NUM_FRAMES
        return F.adaptive_avg_pool2d(grey[:, places.long()], SIDE).flatten(1)

    def forward(self, clips):
        return self.classifier(self.inputs(clips)) * self.log_scale.exp()

    @torch.no_grad()
    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Set the weights by ridge regression, and the scale by cross-validation.

        inputs: float [N, D]; labels: int [N]. The penalty is chosen by leave-one-out validation.
        """
        num_classes = self.classifier.out_features
        weights, bias, penalty = ridge(inputs, labels, num_classes)
        self.classifier.weight.copy_(torch.from_numpy(weights))
        self.classifier.bias.copy_(torch.from_numpy(bias))
        scores = held_out_scores(inputs, labels, num_classes, penalty)
        self.log_scale.fill_(best_log_scale(scores, labels))


def ridge(inputs, labels, num_classes, penalties=PENALTIES) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the weights [classes, D], the biases [classes], and the chosen penalty."""
    from sklearn.linear_model import RidgeCV  # here, since it takes a second to import

    targets = 2 * np.eye(num_classes)[labels] - 1
    model = RidgeCV(alphas=penalties).fit(inputs.astype(np.float64), targets)
    return model.coef_.astype(np.float32), model.intercept_.astype(np.float32), model.alpha_


def held_out_scores(inputs, labels, num_classes, penalty) -> np.ndarray:
    """Return the scores of each clip by a model that was not fitted on it, [N, classes]."""
    num_folds = min(NUM_FOLDS, len(labels))
    fold_of = np.random.default_rng(0).permutation(len(labels)) % num_folds
    scores = np.zeros((len(labels), num_classes))
    for fold in range(num_folds if num_folds > 1 else 0):
        rest = fold_of != fold
        weights, bias, _ = ridge(inputs[rest], labels[rest], num_classes, [penalty])
        scores[~rest] = inputs[~rest] @ weights.T + bias
    return scores


def best_log_scale(scores, labels) -> float:
    """Return the logarithm of the factor that makes softmax(factor x scores) most likely."""
    from scipy.optimize import minimize_scalar

    scores, labels = torch.from_numpy(scores), torch.from_numpy(np.asarray(labels, np.int64))

    def loss(log_scale):
        return F.cross_entropy(scores * float(np.exp(log_scale)), labels).item()

    return float(minimize_scalar(loss, bounds=(0, MAX_LOG_SCALE), method="bounded").x)
