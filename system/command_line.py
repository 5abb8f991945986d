"""The flags of `train.py`."""

import argparse

from system.errors import UserError


class Parser(argparse.ArgumentParser):
    """One whose errors are told like all others, by one process only."""

    def error(self, message):
        raise UserError(f"{message}; --help lists the flags")


def parse_arguments(arguments=None) -> argparse.Namespace:
    """The flags, and `command`: train, evaluate or test. Raises UserError if they make no sense."""
    parser = Parser(description="Trains, evaluates and predicts with the config of a run.")
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False, "metavar": "True|False"}
    parser.add_argument("--config", "-c", required=True, help="JSON file (see config.py)")
    parser.add_argument("--gpus", "-g", help="0, or 0,1 for several GPUs, or cpu; default: a GPU "
                        "if there is one")
    parser.add_argument("--use_gpu", **flag | {"default": True}, help="False is the same as -g cpu")
    parser.add_argument("--resume", "-r", **flag | {"type": boolean_or_auto},
                        help="go on from the checkpoint; auto: if there is one")
    parser.add_argument("--eval_only", "-e", **flag, help="score the validation set")
    parser.add_argument("--test_only", "-t", **flag, help="predict the test set")
    parser.add_argument("--checkpoint", metavar="best|last|FILE", help="with --eval_only, "
                        "--test_only or --resume True: the run folder's best or last checkpoint, "
                        "or a file; default: `checkpoint` of the config, or else the last")
    parser.add_argument("--ensemble", nargs="+", metavar="FILE", help="with --eval_only or "
                        "--test_only: the mean of these checkpoints' scores")
    parser.add_argument("--check_data", **flag, help="look at every frame of all sets, and stop")
    parser.add_argument("--overwrite", **flag, help="delete the run that is in the run folder")
    parser.add_argument("--profile", **flag, help="while training, trace a few steps and say where "
                        "their time goes")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides",
                        help="override one key of the config; may be repeated")
    options = parser.parse_args(arguments)
    _check(options)
    options.command = (
        "evaluate" if options.eval_only else "test" if options.test_only else "train"
    )
    return options


def _check(options) -> None:
    if options.eval_only and options.test_only:
        raise UserError("--eval_only and --test_only: choose one")
    evaluates = options.eval_only or options.test_only
    if options.ensemble and (options.resume or options.checkpoint or not evaluates):
        raise UserError(
            "--ensemble: names checkpoints to evaluate; it goes with --eval_only or --test_only, "
            "and takes the place of --resume and --checkpoint"
        )
    if evaluates and not (options.resume or options.checkpoint or options.ensemble):
        raise UserError(
            "--eval_only and --test_only need a checkpoint: add --resume True, or --checkpoint "
            "with best, last or a file"
        )
    if options.checkpoint and not evaluates and options.resume is not True:
        raise UserError(
            "--checkpoint: goes with --eval_only, --test_only or --resume True; --resume auto "
            "takes the run's last one"
        )
    if options.profile and (evaluates or options.check_data):
        raise UserError("--profile: traces training steps; leave the other command out")
    if options.resume is True and options.overwrite:
        raise UserError("--resume and --overwrite: choose one")


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


def boolean_or_auto(text: str) -> bool | str:
    return "auto" if text.lower() == "auto" else boolean(text)
