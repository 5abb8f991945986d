"""How often kernels of random weights seem to tell directions, beside those of a trained network.

    python benchmarks/random_kernels.py

Draws the first layer of the demo's network with random weights, and chooses kernels as the picture
of learnt kernels does: those that change most over time. Prints in how many of them the strongest
output for a bar that moves right and the one for a bar that moves left have opposite signs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from docs.time_pictures import learnt_kernels, strongest_right_and_left
from model import conv_block
from scoring.predictor import load_predictor
from system.config_file import load_config
from system.errors import exit_status

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.json"


def opposite(network) -> list[bool]:
    """Return whether each of the network's chosen kernels has opposite signs."""
    signs = map(strongest_right_and_left, learnt_kernels(network))
    return [right * left < 0 for right, left in signs]


def of_random_weights(num_networks: int) -> list[bool]:
    """Return `opposite` of the first blocks of networks with seeds 0, 1, 2, ..."""
    config, found = load_config(CONFIG), []
    for seed in range(num_networks):
        torch.manual_seed(seed)
        found += opposite(conv_block(3, config.block_widths[0], has_time=True))
    return found


def compare(options) -> None:
    """Print the figures."""
    kinds = {"random": of_random_weights(options.networks), "learnt": []}
    for path in options.checkpoint:
        kinds["learnt"] += opposite(load_predictor(path, torch.device("cpu")).network)
    for name, found in kinds.items():
        if found:
            print(
                f"{name}: {sum(found):,} of {len(found):,} kernels have opposite signs "
                f"({100 * sum(found) / len(found):.1f} %)"
            )


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--checkpoint", "-c", nargs="*", default=[], metavar="FILE", help="of quickstart runs"
    )
    parser.add_argument(
        "--networks", type=int, default=1000, help="with random weights (%(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: compare(parse_arguments())))
