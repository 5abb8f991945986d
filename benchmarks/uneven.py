"""What helps where classes are uneven: drawing them equally often, weights, or neither.

    python benchmarks/uneven.py --config trainings/my_clips/config.json --save uneven_mine

For each seed, the classes of the config's training set get from `--most` to `--least` clips, drawn
anew, and each network is trained on them as the choice of a recipe does it, on frames of 64 pixels,
but for longer; it is scored on the validation set. `equal weights` multiplies the loss of a clip;
for a ridge regression that is the same as drawing classes equally often.
"""

import argparse
import shlex
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import machine
from benchmarks.folds import PROJECT
from benchmarks.tables import as_digits, of_digits
from clips.annotations import read_annotations, read_labels
from clips.frames import prepare_decoders
from model import build_average
from networks.ridge import balanced_weights
from own_clips import short_trainings
from own_clips.frame_maps import frame_maps
from own_clips.short_trainings import Head, feature_network, log_probabilities, short_config
from scoring.intervals import accuracy_interval, compare_on_same_clips
from system.config_file import load_config
from system.errors import exit_status

NETWORKS = ("eco", "kernel_ridge")
PLAIN, SAMPLING, WEIGHTS = "as they are", "classes drawn equally often", "equal weights"
NUM_STEPS = 400  # at most


def uneven_part(labels, most: int, least: int, rng) -> np.ndarray:
    """Return positions of clips: of the classes, in random order, from `most` to `least`."""
    classes = rng.permutation(np.unique(labels))
    counts = np.geomspace(most, least, len(classes)).round().astype(int)
    parts = [
        rng.permutation(np.flatnonzero(labels == name))[:count]
        for name, count in zip(classes, counts, strict=True)
    ]
    return np.sort(np.concatenate(parts))


def trained(network: str, way: str, maps, labels, chosen, config, seed) -> Head:
    """Return a network that was trained on the clips at `chosen`."""
    num_classes = int(labels.max()) + 1
    config = config.model_copy(update={"balanced_sampling": way == SAMPLING})
    head = Head(build_average(config, num_classes), network, seed)
    if hasattr(head.network, "fit"):
        short_trainings.fit_head(head, maps, labels, None, chosen, config)
        return head
    of_class = torch.from_numpy(balanced_weights_of_classes(labels[chosen], num_classes)).float()

    def weighted_loss(logits, targets, label_smoothing):
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        return (losses * of_class[targets]).sum()

    loss = weighted_loss if way == WEIGHTS else short_trainings.training_loss
    with mock.patch.object(short_trainings, "training_loss", loss):
        rng = np.random.default_rng(seed)
        short_trainings.train_head(head, maps, labels, chosen, config, NUM_STEPS, rng)
    return head


def balanced_weights_of_classes(labels, num_classes) -> np.ndarray:
    weights = np.zeros(num_classes)
    weights[labels] = balanced_weights(labels)
    return weights


def measure(options, command: str) -> None:
    torch.set_num_threads(1)
    config = load_config(PROJECT / options.config)
    names = read_labels(config.labels_csv)
    sets = [
        read_annotations(csv, folder, names)
        for csv, folder in (
            (config.train_data_csv, config.train_data_folder),
            (config.val_data_csv, config.val_data_folder),
        )
    ]
    short = short_config(config)
    network = feature_network(short, len(names))
    maps = [frame_maps(each, range(len(each)), network, short) for each in sets]
    labels = [each.labels[own.indices] for each, own in zip(sets, maps, strict=True)]
    everything, rows = np.arange(len(labels[1])), []
    for kind in NETWORKS:
        right = {}
        for way in (PLAIN, SAMPLING, WEIGHTS) if kind == "eco" else (PLAIN, SAMPLING):
            for seed in options.seeds:
                rng = np.random.default_rng(seed)
                chosen = uneven_part(labels[0], options.most, options.least, rng)
                head = trained(kind, way, maps[0], labels[0], chosen, short, seed)
                scores = log_probabilities(head, maps[1], everything, short)
                own = (scores.argmax(1).numpy() == labels[1]).astype(float)
                frequent = np.bincount(labels[0][chosen], minlength=len(names))
                recalls = [own[labels[1] == name].mean() for name in range(len(names))]
                right.setdefault(way, []).append(own)
                rows.append(
                    {"network": kind, "way": way, "seed": seed, "right": as_digits(own)}
                    | {"balanced": 100 * float(np.mean(recalls))}
                    | {"uneven": 100 * float(np.average(recalls, weights=frequent))}
                )
                print(kind, way, seed, f"{rows[-1]['balanced']:.1f} %", flush=True)
    contents = machine.describe(torch.device("cpu")) | {"command": command, "rows": rows}
    text = report(contents)
    if options.save:
        machine.save(options.save, contents, text)
    print("\n" + text)


def report(contents: dict) -> str:
    lines, rows = [], contents["rows"]
    for kind in NETWORKS:
        own = [row for row in rows if row["network"] == kind]
        right = {row["way"]: [] for row in own}
        for row in own:
            right[row["way"]].append(of_digits(row["right"]))
        for way, results in right.items():
            results, difference = np.array(results), ""
            if way != PLAIN:
                found = compare_on_same_clips(results, np.array(right[PLAIN]))
                difference = f"{found.difference:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
            low, high, _ = accuracy_interval(results)
            means = [
                f"{np.mean([row[key] for row in own if row['way'] == way]):.1f}"
                for key in ("balanced", "uneven")
            ]
            score = f"{100 * results.mean():.1f} ({low:.1f} to {high:.1f})"
            lines.append([kind, way, score, difference, *means])
    columns = ["network", "training clips", "validation top-1, %", "against as they are, points"]
    columns += ["balanced accuracy, %", "top-1 if validation were as uneven, %"]
    head = f"`{contents['command']}`\n\n{contents['machine']}, {contents['versions']}"
    return f"{head}, {contents['date']}\n\n{machine.markdown_table(columns, lines)}\n"


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", "-c", required=True, help="of train.py --data")
    parser.add_argument("--most", type=int, default=28, help="clips of the largest class (28)")
    parser.add_argument("--least", type=int, default=4, help="clips of the smallest class (4)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    prepare_decoders()
    command = shlex.join(["python", "benchmarks/uneven.py", *arguments])
    return exit_status(lambda: measure(parse_arguments(arguments), command))


if __name__ == "__main__":
    sys.exit(main())
