"""The optimizer, and the learning rate as a function of the progress of training."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from config import Config
from model import pretrained_stages
from system.errors import UserError, summarize

# A validation loss counts as lower if it is lower by this fraction (as in PyTorch's scheduler).
PLATEAU_THRESHOLD = 1e-4


def build_optimizer(config: Config, model: nn.Module, device) -> torch.optim.Optimizer:
    """Build the optimizer that the config names.

    Adam uses AMSGrad by default (Reddi et al., https://openreview.net/pdf?id=ryQu7f-RZ); AdamW:
    Loshchilov and Hutter, arXiv 1711.05101.
    """
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    shared["fused"] = device.type == "cuda"  # one kernel for all parameters
    groups = parameter_groups(config, model)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **shared)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, betas=(config.momentum, 0.999), amsgrad=config.amsgrad, **shared)


def parameter_groups(config: Config, model: nn.Module) -> list[dict]:
    """Return the trained parameters in groups with the factor of their learning rate, `lr_scale`.

    The factor of the first group is 1, so that its `lr` is the one to show.
    """
    scale, slower = config.pretrained_lr_scale, set()
    if scale != 1:
        found = pretrained_stages(model, config)
        slower = {id(parameter) for _, stage in found for parameter in stage.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for lr_scale, is_slower in ((1.0, False), (scale, True)):
        parameters = [each for each in trained if (id(each) in slower) == is_slower]
        # The tutorial's Adam decays all parameters.
        decays_all = config.optimizer == "adam"
        parts = [{"params": parameters}] if decays_all else decayed_and_others(parameters)
        groups += [part | {"lr_scale": lr_scale} for part in parts if part["params"]]
    return groups


def decayed_and_others(parameters: list[nn.Parameter]) -> list[dict]:
    """Return two groups: weights with weight decay; biases and BatchNorm's without.

    Pulling a scale or an offset to 0 makes a network no simpler. (He et al., arXiv
    1812.01187, section 3.1)
    """
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": kernels}, {"params": others, "weight_decay": 0.0}]


def optimizer_state(optimizer, model: nn.Module) -> dict:
    """Return the optimizer's `state_dict`, with states numbered like `model.parameters()`.

    A checkpoint then does not depend on how parameters are grouped.
    """
    numbers = _numbers_of_parameters(optimizer, model)
    own = optimizer.state_dict()
    return own | {"state": {numbers[index]: state for index, state in own["state"].items()}}


def load_optimizer_state(optimizer, model: nn.Module, saved: dict, path) -> None:
    """Load what `optimizer_state` returned; settings (lr, betas ...) stay those of the config.

    Raises UserError if the state is that of another network or optimizer.
    """
    own, states = optimizer.state_dict(), saved.get("state")
    trained = {
        number: parameter
        for number, parameter in enumerate(model.parameters())
        if parameter.requires_grad
    }
    problems = _differences(states, trained, optimizer.defaults)
    if problems:
        raise UserError(
            f"{path}: optimizer state of another network or optimizer: {summarize(problems, 3)}; "
            "resume with the config it was trained with, or start a new run with `pretrained`"
        )
    numbers = _numbers_of_parameters(optimizer, model)
    states = {index: states[number] for index, number in enumerate(numbers) if number in states}
    optimizer.load_state_dict({"state": states, "param_groups": own["param_groups"]})


def _numbers_of_parameters(optimizer, model) -> list[int]:
    """Return each parameter's number in the model, in the order of the optimizer's groups."""
    numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    return [
        numbers[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    ]


def _differences(states, parameters: dict[int, nn.Parameter], defaults) -> list[str]:
    """Return what is missing in the optimizer's state or does not fit the trained parameters.

    parameters: number in the model -> parameter.
    """
    if "betas" in defaults:
        names = ["step", "exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * defaults["amsgrad"]]
    else:  # SGD without momentum keeps no state
        names = ["momentum_buffer"] if defaults["momentum"] else []
    if names and (not isinstance(states, dict) or set(states) != set(parameters)):
        return [f"it is not that of {len(parameters)} trained parameters"]
    return [
        f"{name} of parameter {index} is missing or does not fit"
        for index, parameter in parameters.items()
        for name in names
        if not isinstance(states[index], dict)
        or getattr(states[index].get(name), "shape", None)
        != (() if name == "step" else parameter.shape)
    ]


def learning_rate(config: Config, epochs_done: float, validation_losses) -> float:
    """Return the learning rate of a step.

    epochs_done: epochs finished after this step, with the fraction of the current one.
    validation_losses: one per finished epoch; the plateau schedule is recomputed from them, so
    that it needs no state.
    """
    if config.is_fitted:  # on these very clips, where its logits would become too sure
        return 0.0
    if epochs_done < config.warmup_epochs:
        return config.lr * epochs_done / config.warmup_epochs
    if config.schedule == "cosine":
        done = (epochs_done - config.warmup_epochs) / (config.num_epochs - config.warmup_epochs)
        return config.last_lr + (config.lr - config.last_lr) * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "plateau":
        return plateau_learning_rate(config, validation_losses)
    return config.lr


def set_learning_rate(optimizer, rate: float) -> None:
    """Set the learning rate of each group to `rate`, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def plateau_learning_rate(config: Config, validation_losses) -> float:
    """Return `lr`, times `plateau_factor` for each time the loss had not fallen for too long."""
    rate, best, epochs_without_progress = config.lr, math.inf, 0
    for loss in validation_losses:
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, epochs_without_progress = loss, 0
        else:
            epochs_without_progress += 1
        if epochs_without_progress > config.plateau_patience:
            rate, epochs_without_progress = rate * config.plateau_factor, 0
    return max(rate, config.last_lr)


def training_is_over(config: Config, epochs_done: int, validation_losses) -> str | None:
    """Return why training ends after `epochs_done` epochs, or None if it does not."""
    if 0 < config.num_epochs <= epochs_done:  # a resumed run may be beyond it already
        return f"{epochs_done} epochs are done"
    patience = config.early_stopping_epochs
    if patience and validation_losses:
        # A published checkpoint has epochs, but not their losses.
        num_worse = len(validation_losses) - 1 - validation_losses.index(min(validation_losses))
        if num_worse >= patience:
            return f"the validation loss has not fallen for {num_worse} epochs"
    if config.schedule == "plateau":
        rate = plateau_learning_rate(config, validation_losses)
        # Repeated multiplication misses last_lr by a rounding error.
        if rate <= config.last_lr * (1 + 1e-9) and rate < config.lr:
            return f"the learning rate has fallen to last_lr ({config.last_lr:g})"
    return None


def clip_gradients(model: nn.Module, largest_norm: float | None) -> torch.Tensor:
    """Scale the gradients down to `largest_norm`, if given; return their norm before that."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters])
    if largest_norm:
        clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm


def training_loss(logits, targets, label_smoothing: float) -> torch.Tensor:
    """Return the sum of the clips' losses; of the members of `average`, the mean over members.

    logits: [N, classes], or of each member [N, S, classes]; targets: int64 [N], or probabilities
    [N, classes].
    """
    keys = {"reduction": "sum", "label_smoothing": label_smoothing}
    if logits.dim() == 2:
        return F.cross_entropy(logits.float(), targets, **keys)
    num_members = logits.shape[1]
    targets = targets[..., None].expand(*targets.shape, num_members)
    return F.cross_entropy(logits.float().transpose(1, 2), targets, **keys) / num_members
