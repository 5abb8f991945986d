"""The keys of a config file: type, unit, default and meaning.

A config is a flat JSON object, which `system.config_file.load_config` reads. `python config.py`
writes `configs/schema.json` from the class below; editors use it to complete and check keys.
"""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_FILE = Path(__file__).parent / "configs" / "schema.json"

# The sets of clips, and the prefixes of their config keys.
SET_PREFIXES = {"train": "train", "validation": "val", "test": "test"}

# torchvision's video networks -> the names of their classification heads.
TORCHVISION_VIDEO_MODELS = {
    "r3d_18": "fc",
    "mc3_18": "fc",
    "r2plus1d_18": "fc",
    "s3d": "classifier",
    "swin3d_t": "head",
    "swin3d_s": "head",
    "swin3d_b": "head",
    "mvit_v1_b": "head",
    "mvit_v2_s": "head",
}
MIN_ALPHA = 1e-3  # of a Beta distribution; far below, its samples are inaccurate
MODELS = (
    "conv3d",
    "eco",
    "cnn_lstm",
    "trn",
    "two_stream",
    "mobilenet3d",
    "csn",
    "kernel_ridge",
    "linear",
    "average",
    *TORCHVISION_VIDEO_MODELS,
)
MEMBERS = (  # of `average`
    "eco",
    "kernel_ridge",
    "cnn_lstm",
    "trn",
    "conv3d",
    "mobilenet3d",
    "csn",
    "linear",
)
MAP_MODELS = ("eco", "kernel_ridge")  # on maps of a 2D network
FITTED_MODELS = ("kernel_ridge", "linear")  # in closed form
FRAME_MODELS = (*MAP_MODELS, "cnn_lstm", "trn", "two_stream")
# Keys that apply only to some networks.
MODEL_OPTIONS = {
    "block_widths": ("conv3d",),
    "head_widths": ("conv3d",),
    "backbone": FRAME_MODELS,
    "backbone_layer": MAP_MODELS,
    "center_features": MAP_MODELS,
    "lstm_units": ("cnn_lstm",),
    "trn_scales": ("trn",),
    "depth": ("csn",),
    "width": ("mobilenet3d", "csn"),
    "dropout": ("conv3d", "eco", "cnn_lstm", "trn", "two_stream", "mobilenet3d", "csn", "s3d"),
    "members": ("average",),
    "small_frame_height": ("average",),
    "combine": ("average",),
}
# Keys that define which pixels of a clip are evaluated.
WINDOW_KEYS = (
    "clip_size",
    "step_size",
    "nclips",
    "ncrops",
    "nviews",
    "frame_rate",
    "sampling",
    "frame_height",
    "crop_size",
)
# Keys that define a network and its input in evaluation.
INPUT_AND_NETWORK_KEYS = (
    *WINDOW_KEYS,
    "mean",
    "std",
    "subtract_background",
    "model",
    *MODEL_OPTIONS,
)
FEATURE_MODELS = (*MAP_MODELS, "cnn_lstm", "trn", "average")  # whose features of frames can be kept
# Keys that these features depend on, besides the clips and the backbone's weights.
FEATURE_KEYS = (
    "seed",
    "feature_versions",
    *WINDOW_KEYS,
    "subtract_background",
    "affine_degrees",
    "affine_translate",
    "affine_scale",
    "affine_shear",
    "affine_interpolation",
    "affine_padding",
    "horizontal_flip",
    "flip_labels",
    "colour_jitter",
    "random_erasing",
    "time_masking",
    "step_jitter",
    "model",
    "backbone",
    "backbone_layer",
)
BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_lite0",
)
IMAGENET_WEIGHTS = "imagenet"  # value of `pretrained`
# Normalization of torchvision's weights of ImageNet, and of networks from random weights.
IMAGENET_COLOURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Fraction = Annotated[float, Field(ge=0, lt=1)]
# The limits refuse values that would later exceed memory or an integer.
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1, le=2**16)]
PositiveFloat = Annotated[float, Field(gt=0)]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Colour = Annotated[list[float], Field(min_length=3, max_length=3)]


class Config(BaseModel):
    """The settings of one run. Paths are relative to the current folder."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    # --- the run -----------------------------------------------------------------------------
    model_name: str = Field(
        min_length=1,
        pattern=r"^[^/\\\x00]+$",
        description="Name of the run; its folder is <output_dir>/<model_name>.",
    )
    output_dir: str = Field(
        "trainings/", pattern=r"^[^\x00]*$", description="Folder of the run folders."
    )
    checkpoint: str | None = Field(
        None, description="Checkpoint that --resume loads; null: the last one in the run folder."
    )
    pretrained: str | None = Field(
        None,
        description="Initial weights of a new run: a checkpoint; a file with a state dict; "
        "imagenet, for a backbone trained on ImageNet; or the name of torchvision's weights, such "
        "as R3D_18_Weights.KINETICS400_V1. 2D weights are inflated for 3D networks. null: random "
        "weights.",
    )
    new_head: bool = Field(
        False,
        description="With `pretrained`: initialize the last layer randomly, for other classes.",
    )
    freeze: bool | PositiveInt = Field(
        False,
        description="With `pretrained`: the stages that are not trained. true: the whole "
        "pretrained part (the backbone; in two_stream, that of the spatial stream; in networks "
        "without a backbone, all but the classifier); a number: that many of its first stages, as "
        "listed when training starts.",
    )
    pretrained_lr_scale: PositiveFloat = Field(
        1.0,
        le=1e6,
        description="With `pretrained`: the learning rate of the pretrained part is lr times this.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all random numbers.")
    num_epochs: int = Field(
        -1,
        ge=-1,
        le=2**31 - 1,
        description="Number of passes over the training clips; -1: until the learning rate reaches "
        "last_lr, or until the run is stopped.",
    )
    print_freq: PositiveInt = Field(
        100, description="Steps between progress lines if the output is not a terminal."
    )
    checkpoint_minutes: float = Field(
        10.0, ge=0, description="Minutes between checkpoints within an epoch; 0: after each step."
    )
    deterministic: bool = Field(
        False, description="On a GPU, use deterministic algorithms only, which are slower."
    )

    # --- the data ----------------------------------------------------------------------------
    train_data_folder: str = Field(
        description="Folder with one folder of frames, or one video file, per clip; or a pack."
    )
    train_data_csv: str = Field(description="Training clips, one per line: id;label.")
    val_data_folder: str = Field(description="Like train_data_folder, for validation.")
    val_data_csv: str = Field(description="Like train_data_csv, for validation.")
    test_data_folder: str | None = Field(
        None, description="Like train_data_folder, for --test_only."
    )
    test_data_csv: str | None = Field(None, description="Test clips, one id per line, no labels.")
    labels_csv: str = Field(description="Class names, one per line; line number = class index.")
    group: str | None = Field(
        None,
        description="Regular expression whose first group is the name of a clip's group (its "
        "person or recording), such as ^([a-z]+)_; searched in the clip's name, or, if it contains "
        "a slash, in the clip's id; null: the column `group` of the CSVs, if there is one.",
    )
    num_classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Number of classes; null: the number of lines of labels_csv."
    )
    num_workers: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None,
        description="Loader workers of each training process, at most one per core; null: one "
        "per core, up to 16; 0: the training process loads the clips.",
    )
    max_frame_pixels: PositiveInt = Field(
        2**26,  # 8192 x 8192: enough for 8K videos, also of 360 degrees
        description="Frames with more pixels than this are refused before decoding.",
    )
    on_bad_clip: Literal["stop", "skip"] = Field(
        "stop",
        description="If a clip cannot be read: stop the run, or skip the clip, count it and list "
        "it in bad_clips.csv.",
    )
    max_bad_share: Fraction = Field(
        0.01, description="With skip: stop the run if a larger fraction of a set cannot be read."
    )

    baseline_clips: int = Field(
        2000,
        ge=0,
        le=2**31 - 1,
        description="Maximum number of training clips for the linear model, whose score is "
        "shown beside that of the network; 0: no baselines.",
    )
    picture_baseline_clips: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Maximum number of training clips, and of validation clips, for the baseline "
        "`pictures without order`: logistic regression on the features of single frames. On a CPU, "
        "100 clips take about 5 seconds. 0: not computed.",
    )
    time_probe_clips: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Maximum number of validation clips that are classified after the last epoch "
        "with their frames reversed, shuffled, and all replaced by one, for the report; 0: none.",
    )

    # --- from frames to clips ----------------------------------------------------------------
    clip_size: Size = Field(18, description="Frames in a clip (T).")
    step_size: Size = Field(2, description="With window: use every step_size-th frame.")
    nclips: Size = Field(
        1, description="Windows per clip in evaluation; their scores are averaged."
    )
    frame_rate: PositiveFloat = Field(
        12.0, le=1000, description="Frames per second of clips; videos are resampled to it."
    )
    sampling: Literal["window", "segments"] = Field(
        "window",
        description="window: clip_size frames, step_size apart, from a random start; "
        "segments: one frame from each of clip_size equal parts of the clip.",
    )
    frame_height: Size | None = Field(
        100, description="Frames are scaled to this height (pixels); null: not scaled."
    )
    crop_size: Size | Annotated[list[Size], Field(min_length=2, max_length=2)] = Field(
        84, description="Size of the centre crop in pixels: one number, or [height, width]."
    )
    affine_degrees: float = Field(
        10.0, ge=0, le=180, description="Training clips are rotated by up to ± this many degrees."
    )
    affine_translate: Fraction = Field(
        0.15, description="... and shifted by up to ± this fraction of their width and height."
    )
    affine_scale: Fraction = Field(0.0, description="... and scaled by up to ± this fraction.")
    affine_shear: float = Field(
        0.0, ge=0, lt=90, description="... and sheared by up to ± this many degrees."
    )
    affine_interpolation: Literal["nearest", "bilinear"] = Field(
        "nearest",
        description="How pixels of moved frames are computed; bilinear suits networks that were "
        "trained on smooth pictures, and takes four times as long.",
    )
    affine_padding: Literal["zeros", "border"] = Field(
        "zeros",
        description="What fills the edges that a movement uncovers: black, or the border's pixels.",
    )
    horizontal_flip: Share = Field(
        0.0, description="Fraction of training clips that are mirrored; see flip_labels."
    )
    flip_labels: dict[str, str] | Literal["unchanged"] | None = Field(
        None,
        description="Labels of mirrored clips: pairs of class names that are swapped, or "
        '"unchanged" if no label changes.',
    )
    colour_jitter: Fraction = Field(
        0.0, description="Brightness, contrast and saturation change by up to ± this fraction."
    )
    random_erasing: Share = Field(
        0.0, description="Fraction of training clips in which a random box is erased."
    )
    time_masking: Share = Field(
        0.0,
        description="Maximum fraction of a training clip's frames that are replaced by its mean "
        "frame; how many consecutive frames, and which, is drawn per clip.",
    )
    step_jitter: Fraction = Field(
        0.0, description="Training clips run faster or slower by up to ± this fraction."
    )
    ncrops: Literal[1, 3] = Field(
        1,
        description="Crops per window in evaluation: 1: the centre; 3: also both ends of the "
        "longer side; the scores of all windows and crops are averaged.",
    )
    nviews: Annotated[int, Field(ge=1, le=4)] = Field(
        1,
        description="Views per crop in evaluation: 1: the crop itself; 2 to 4: also rotated, "
        "shifted and scaled a little (test-time augmentation); the scores are averaged.",
    )
    mean: Colour | None = Field(
        None,
        description="Subtracted from RGB values from 0 to 1; null: as the weights of `pretrained` "
        "expect, otherwise ImageNet's.",
    )
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] | None = Field(
        None, description="RGB values are then divided by this; null: as for `mean`."
    )

    subtract_background: bool = Field(
        False,
        description="Subtract each clip's mean frame, so that pixels that do not change are 0; "
        "for fixed cameras, and for clips that differ in movement only.",
    )

    # --- the network -------------------------------------------------------------------------
    model: Literal[MODELS] = Field(
        "conv3d",
        description="conv3d: the tutorial's 3D ConvNet; eco: a 2D ConvNet on each frame, then a 3D "
        "one on the stacked maps; cnn_lstm: a 2D ConvNet on each frame, then an LSTM; trn: "
        "Temporal Relation Network; two_stream: a frame and optical flow; mobilenet3d, csn: light "
        "3D networks of depthwise convolutions; kernel_ridge: kernel ridge regression on the maps "
        "of a 2D ConvNet; linear: ridge regression on small grey frames; average: "
        "several networks together, its `members`; the others: torchvision's video models.",
    )
    block_widths: Annotated[list[Size], Field(min_length=1)] = Field(
        [32, 64, 124, 256],
        description="conv3d: channels of each block; further blocks repeat the last entry.",
    )
    head_widths: Annotated[list[Size], Field(min_length=1)] = Field(
        [512, 512, 256],
        description="conv3d: channels of the last convolution, then of each hidden layer.",
    )
    backbone: Literal[BACKBONES] = Field(
        "resnet18",
        description="eco, kernel_ridge, cnn_lstm, trn, two_stream: the 2D ConvNet on the frames.",
    )
    backbone_layer: str | None = Field(
        None,
        description="eco, kernel_ridge: the layer of the backbone whose maps are used, such as "
        "blocks.7 of efficientnet_lite0 or layer3 of resnet18; null: the last one with a stride "
        "of 16.",
    )
    center_features: bool = Field(
        False,
        description="eco, kernel_ridge: subtract each clip's mean map, so that only what changes "
        "is left.",
    )
    members: list[Literal[MEMBERS]] = Field(
        [],
        description="average: the networks that answer together, such as "
        '["eco", "conv3d", "linear"]; at most one of eco, cnn_lstm and trn, but eco and '
        "kernel_ridge can be averaged, since they share the 2D ConvNet.",
    )
    small_frame_height: Size = Field(
        40,
        description="average: height (pixels) to which frames are shrunk for members without a "
        "2D network.",
    )
    combine: Literal["mean", "product"] = Field(
        "mean",
        description="average: the answer is the mean of the members' probabilities, or their "
        "product divided by its sum over the classes, which is surer where they agree.",
    )
    lstm_units: Size = Field(256, description="cnn_lstm: size of the LSTM's hidden state.")
    trn_scales: Literal["multi", "single"] = Field(
        "multi", description="trn: relations of 2, 3, ... clip_size frames, or of clip_size only."
    )
    depth: Literal[26, 50, 101, 152] = Field(26, description="csn: number of layers.")
    width: PositiveFloat = Field(
        1.0, le=16, description="mobilenet3d, csn: multiplier of the number of channels."
    )
    dropout: Fraction = Field(0.15, description="Fraction of hidden units dropped in training.")

    # --- the training ------------------------------------------------------------------------
    feature_versions: Annotated[int, Field(ge=0, le=2**16)] = Field(
        0,
        description="With a frozen backbone: compute its features once, for this many augmented "
        "versions of each training clip, and train on them; 0: compute them in each step.",
    )
    batch_size: Size = Field(100, description="Clips per training step, over all processes.")
    eval_batch_size: Size | None = Field(
        None,
        description="Clips per batch in evaluation, which needs less memory per clip than "
        "training; null: twice batch_size.",
    )
    balanced_sampling: bool = Field(
        False,
        description="Draw training clips with replacement, so that all classes are equally "
        "frequent, however many clips they have; an epoch has as many clips as without it. The "
        "ridge regressions of kernel_ridge and linear weight clips instead.",
    )
    accumulate_steps: Size = Field(
        1,
        description="Gradient accumulation: compute each batch in this many parts, to save memory.",
    )
    batchnorm_refresh_steps: int = Field(
        300,
        ge=0,
        description="During this many first steps, in which BatchNorm's running statistics lag "
        "behind, they are recomputed from training clips before each validation; 0: never.",
    )
    checkpoint_activations: bool = Field(
        False,
        description="Recompute activations in the backward pass instead of storing them: less "
        "memory, about a third more time.",
    )
    sync_batchnorm: bool = Field(
        False, description="On GPUs: BatchNorm over the clips of all processes."
    )
    precision: Precision = Field(
        "auto",
        description="Precision of convolutions and matrix products in training; weights are fp32. "
        "auto: bf16 if the hardware supports it, else fp32; fp16: with loss scaling; tf32: fp32 "
        "with TF32 products on a GPU.",
    )
    eval_precision: Precision = Field(
        "fp32",
        description="The same for validation, test and prediction; in fp32, a checkpoint has "
        "the same scores on every machine.",
    )
    compile: bool = Field(
        False, description="Use torch.compile: a slow start, then often faster steps."
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="adam; adamw: with decoupled weight decay; sgd: with momentum."
    )
    lr: PositiveFloat = Field(0.001, le=1e6, description="Initial learning rate (after warm-up).")
    last_lr: float = Field(1e-5, ge=0, description="Final learning rate (plateau, cosine).")
    momentum: Fraction = Field(0.9, description="Momentum; beta1 of adam and adamw.")
    weight_decay: float = Field(
        1e-5,
        ge=0,
        le=1e6,
        description="Weight decay. adam: an L2 penalty on all weights; adamw: decoupled; sgd: an "
        "L2 penalty; the latter two not on biases and BatchNorm.",
    )
    grad_clip: PositiveFloat | None = Field(
        None,
        description="Maximum norm of the gradients, which are scaled down if it is larger; "
        "null: off. The history records the norm in either case.",
    )
    amsgrad: bool = Field(True, description="AMSGrad variant of adam and adamw (2018).")
    label_smoothing: Fraction = Field(
        0.0, description="Fraction of each label that is distributed over all classes."
    )
    mixup_alpha: float = Field(
        0.0,
        ge=0,
        le=100,
        description="mixup: pairs of clips, and their labels, are blended with a weight from "
        "Beta(alpha, alpha); 0: off.",
    )
    cutmix_alpha: float = Field(
        0.0,
        ge=0,
        le=100,
        description="CutMix: a box of each clip is replaced by the same box of another clip, "
        "whose size is drawn in the same way; with both, each step draws one of the two.",
    )
    ema_decay: Fraction = Field(
        0.0,
        description="Evaluate the exponential moving average of the weights with this decay; "
        "0: off.",
    )
    early_stopping_epochs: PositiveInt | None = Field(
        None, description="Stop training after this many epochs without a lower validation loss."
    )
    schedule: Literal["plateau", "cosine", "constant"] = Field(
        "plateau",
        description="Learning rate. plateau: lowered when the validation loss stops decreasing; "
        "cosine: from lr to last_lr over num_epochs; constant: lr.",
    )
    warmup_epochs: float = Field(
        0.0, ge=0, description="Epochs in which the learning rate increases linearly from 0 to lr."
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="plateau: factor by which the learning rate is lowered."
    )
    plateau_patience: int = Field(
        10,
        ge=0,
        le=2**31 - 1,
        description="... after more than this many epochs without a lower validation loss.",
    )

    @field_validator("group")
    @classmethod
    def _check_group(cls, pattern):
        try:
            num_groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        if not num_groups:
            raise ValueError("put the part that names the group in brackets, as in ^([a-z]+)_")
        return pattern

    @model_validator(mode="after")
    def _check_combinations(self):
        problems = []
        if self.model_name in (".", ".."):
            problems.append(f"model_name: found {self.model_name!r}; expected a folder name")
        if self.num_epochs == 0:
            problems.append("num_epochs: found 0; expected -1 or at least 1")
        if self.schedule == "cosine" and self.num_epochs == -1:
            problems.append("num_epochs: found -1; a cosine schedule needs a number of epochs")
        if 0 < self.num_epochs <= self.warmup_epochs:
            problems.append(f"warmup_epochs: expected less than num_epochs ({self.num_epochs})")
        if self.last_lr > self.lr:
            problems.append(f"last_lr: found {self.last_lr}; expected at most lr ({self.lr})")
        if self.batch_size < 2 * self.accumulate_steps:
            problems.append(
                f"accumulate_steps: found {self.accumulate_steps}; BatchNorm needs two clips per "
                f"part, more than batch_size ({self.batch_size}) gives"
            )
        problems += [
            f"{key}: found {getattr(self, key)!r}; it applies to {', '.join(models)}, not to "
            f"{' and '.join(self.networks)}; remove it"
            for key, models in MODEL_OPTIONS.items()
            if not {*self.networks, self.model} & {*models}
            and getattr(self, key) != self._default(key)
        ]
        problems += self._problems_of_members()
        problems += self._problems_of_features()
        if self.model == "two_stream" and self.clip_size < 2:
            problems.append("clip_size: found 1; two_stream needs at least two frames")
        if self.center_features and self.clip_size == 1:
            problems.append(
                "center_features: found true; a clip of one frame is its own mean, so nothing "
                "would be left; set it to false, or clip_size to 2 or more"
            )
        if self.model == "two_stream" and self.nviews > 1:
            problems.append(
                f"nviews: found {self.nviews}; two_stream's optical flow cannot be rotated; set it "
                "to 1"
            )
        problems += self._problems_of_the_recipe()
        problems += self._problems_of_pretrained()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_members(self) -> list[str]:
        """Return a message for each conflict between the members of `average`."""
        problems = []
        if self.model == "average" and len(set(self.members)) != max(2, len(self.members)):
            problems.append(f"members: found {self.members}; average needs two or more, each once")
        framed = [name for name in self.networks if name in FRAME_MODELS]
        if len(framed) > 1 and not {*framed} <= {*MAP_MODELS}:
            problems.append(
                f"members: found {' and '.join(framed)}; average takes only one of them"
            )
        if "kernel_ridge" in self.networks and self.pretrained and self.freeze is not True:
            problems.append(
                f"freeze: found {json.dumps(self.freeze)}; kernel_ridge is fitted once, on maps "
                "of a backbone that must not change; set freeze to true"
            )
        return problems

    def _problems_of_features(self) -> list[str]:
        """Return a message for each key that excludes `feature_versions`."""
        if not self.feature_versions:
            return []
        found, problems = f"feature_versions: found {self.feature_versions}", []
        if self.model not in FEATURE_MODELS:
            models = ", ".join(FEATURE_MODELS)
            problems.append(f"{found}; it applies to {models}, not to {self.model}; set it to 0")
        elif self.freeze is not True:
            problems.append(
                f"{found}, but freeze is {json.dumps(self.freeze)}: features change while the "
                "backbone is trained; set freeze to true, or feature_versions to 0"
            )
        if self.cutmix_alpha:
            problems.append(
                f"cutmix_alpha: found {self.cutmix_alpha:g}; features of whole frames have no "
                "boxes to replace; use mixup_alpha, or set feature_versions to 0"
            )
        return problems

    def _problems_of_pretrained(self) -> list[str]:
        """Return a message for each conflict with `pretrained`."""
        problems = [
            f"{key}: found {json.dumps(value)}, but `pretrained` is null; set both or neither"
            for key in ("new_head", "freeze", "pretrained_lr_scale")
            if (value := getattr(self, key)) != self._default(key) and not self.pretrained
        ]
        if self.freeze is True and self.pretrained_lr_scale != 1:
            problems.append(
                f"pretrained_lr_scale: found {self.pretrained_lr_scale:g}, but with freeze true no "
                "pretrained layer is trained; set one of the two"
            )
        if self.pretrained == IMAGENET_WEIGHTS and not {*self.networks} & {*FRAME_MODELS}:
            problems.append(
                f'pretrained: found "{IMAGENET_WEIGHTS}"; it applies to {", ".join(FRAME_MODELS)}; '
                f"for {self.model}, name a file or torchvision's weights"
            )
        return problems

    def _problems_of_the_recipe(self) -> list[str]:
        """Return a message for each conflict between augmentations."""
        problems = []
        is_mixed = self.mixup_alpha or self.cutmix_alpha
        for key in ("mixup_alpha", "cutmix_alpha"):
            if 0 < getattr(self, key) < MIN_ALPHA:
                problems.append(
                    f"{key}: found {getattr(self, key):g}; expected 0, which is off, "
                    f"or at least {MIN_ALPHA:g}"
                )
        if self.horizontal_flip and self.flip_labels is None:
            problems.append(
                "flip_labels: missing; a mirrored swipe to the left is a swipe to the right: give "
                'the pairs of classes that are swapped, or "unchanged"'
            )
        if self.flip_labels is not None and not self.horizontal_flip:
            problems.append("flip_labels: given, but horizontal_flip is 0; set both or neither")
        if is_mixed and isinstance(self.flip_labels, dict):
            problems.append(
                "flip_labels: given with mixup_alpha or cutmix_alpha; choose one: a clip mixed "
                "with a mirrored clip of the opposite class has no direction"
            )
        if self.step_jitter and self.sampling == "segments":
            problems.append(
                f"step_jitter: found {self.step_jitter}; it needs sampling window, not segments"
            )
        if self.model == "two_stream" and min(self.crop) < 16:
            problems.append(
                f"crop_size: found {self.crop_size}; optical flow needs at least 16 pixels"
            )
        return problems

    @property
    def networks(self) -> list[str]:
        """Return the network, or the members of `average`."""
        return self.members if self.model == "average" else [self.model]

    @property
    def is_fitted(self) -> bool:
        """Return whether all weights are fitted in closed form, so that training moves none."""
        return {*self.networks} <= {*FITTED_MODELS}

    @property
    def small_crop(self) -> tuple[int, int]:
        """Return height and width of the frames for the members without a 2D network."""
        height, width = self.crop
        scale = min(1, self.small_frame_height / height)
        return round(height * scale), max(1, round(width * scale))

    @classmethod
    def _default(cls, key):
        return cls.model_fields[key].default

    @property
    def num_channels(self) -> int:
        """Return the number of input channels: RGB, and for two_stream two of optical flow."""
        return 5 if self.model == "two_stream" else 3

    @property
    def crop(self) -> tuple[int, int]:
        """Return height and width of the network's input, in pixels."""
        if isinstance(self.crop_size, int):
            return self.crop_size, self.crop_size
        return tuple(self.crop_size)

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of the network's input, (T, H, W)."""
        return (self.clip_size, *self.crop)

    @property
    def input_mean(self) -> tuple[float, ...]:
        """Return the mean of each input channel, in 0..1; optical flow is centred at 0.5.

        A run sets `mean` and `std` when it starts; those that never did have ImageNet's.
        """
        return (*(self.mean or IMAGENET_COLOURS["mean"]), *[0.5] * (self.num_channels - 3))

    @property
    def input_std(self) -> tuple[float, ...]:
        """Return the standard deviation of each input channel."""
        return (*(self.std or IMAGENET_COLOURS["std"]), *[0.1] * (self.num_channels - 3))

    @property
    def windows_per_video(self) -> int:
        """Return the number of windows per video in evaluation, whose scores are averaged."""
        return self.nclips * self.ncrops

    @property
    def inputs_per_video(self) -> int:
        """Return the number of network inputs per video in evaluation: windows and their views."""
        return self.windows_per_video * self.nviews

    @property
    def videos_per_eval_batch(self) -> int:
        """Return the number of videos per batch in evaluation."""
        return max(1, (self.eval_batch_size or 2 * self.batch_size) // self.inputs_per_video)

    @property
    def run_folder(self) -> Path:
        """<output_dir>/<model_name>."""
        return Path(self.output_dir) / self.model_name

    def set_paths(self, set_name: str) -> tuple[str | None, str | None]:
        """Return folder and CSV of the set `train`, `validation` or `test`."""
        prefix = SET_PREFIXES[set_name]
        return getattr(self, f"{prefix}_data_folder"), getattr(self, f"{prefix}_data_csv")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file, including its `$schema` key."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["$schema"] = {"type": "string", "description": "Path of this schema."}
    return schema


def main() -> int:
    """Write configs/schema.json."""
    SCHEMA_FILE.write_text(json.dumps(json_schema(), indent=2) + "\n")
    print(f"wrote {SCHEMA_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
