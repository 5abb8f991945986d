"""The command-line flags of train.py."""

import argparse

from system.errors import UserError


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UserError instead of exiting."""

    def error(self, message: str):
        raise UserError(f"{message}; --help lists the flags")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the flags, and `command`: train, evaluate or test. Raises UserError for conflicts."""
    parser = Parser(description="Train, evaluate or predict with the config of a run.")
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False, "metavar": "True|False"}
    parser.add_argument(
        "--config", "-c", help="the JSON file of the run; config.py explains its keys"
    )
    parser.add_argument(
        "--data",
        "-d",
        metavar="FOLDER",
        help="instead of --config: a folder with "
        "one folder of videos, or of folders of frames, per class",
    )
    parser.add_argument(
        "--group",
        metavar="RULE",
        help="with --data: which clips belong together, such as those of one person, and are not "
        "split between training and validation: a regular expression for file names, such as "
        "'^([a-z]+)_', `folder` for the folder within the class folder, or FILE.csv:COLUMN",
    )
    parser.add_argument(
        "--quick",
        **flag,
        help="with --data: take eco on windows, instead of choosing networks and sampling by "
        "cross-validation",
    )
    parser.add_argument(
        "--gpus",
        "-g",
        help="a GPU, such as 0; 0,1 for several; cpu; default: a GPU if there is one",
    )
    parser.add_argument("--use_gpu", **flag | {"default": True}, help="False: the same as -g cpu")
    parser.add_argument(
        "--resume",
        "-r",
        **flag | {"type": boolean_or_auto, "metavar": "True|False|auto"},
        help="continue from the checkpoint; auto: the same if there is one, otherwise start",
    )
    parser.add_argument("--eval_only", "-e", **flag, help="evaluate on the validation set")
    parser.add_argument("--test_only", "-t", **flag, help="predict the classes of the test set")
    parser.add_argument(
        "--checkpoint",
        metavar="best|last|FILE",
        help="with --eval_only, --test_only or --resume True: the best or last checkpoint of the "
        "run folder, or a file; default: the config's `checkpoint`, otherwise the last",
    )
    parser.add_argument(
        "--ensemble",
        nargs="+",
        metavar="FILE",
        help="with --eval_only or --test_only: average the scores of these checkpoints",
    )
    parser.add_argument(
        "--stack",
        nargs="+",
        metavar="FILE",
        help="fit a linear model to the validation scores of these checkpoints, and write it to "
        "the run folder as stack.json, which --checkpoint accepts",
    )
    parser.add_argument("--check_data", **flag, help="check every frame of every set, and exit")
    parser.add_argument("--overwrite", **flag, help="delete an existing run in the run folder")
    parser.add_argument(
        "--profile", **flag, help="trace a few training steps and print the time of each part"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        dest="overrides",
        help="override a config key; may be repeated",
    )
    options = parser.parse_args(arguments)
    _check(options)
    commands = {"evaluate": options.eval_only, "test": options.test_only, "stack": options.stack}
    options.command = next((name for name, is_given in commands.items() if is_given), "train")
    return options


def _check(options: argparse.Namespace) -> None:
    """Raise UserError if flags conflict or one is missing."""
    if bool(options.config) == bool(options.data):
        raise UserError(
            "give a config with --config FILE, or a folder of clips with --data FOLDER; "
            "--help lists the flags"
        )
    if options.group and not options.data:
        raise UserError("--group: needs --data; with --config, the CSVs may have a column `group`")
    if options.quick and not options.data:
        raise UserError("--quick: needs --data; a config names its networks")
    if options.eval_only and options.test_only:
        raise UserError("--eval_only and --test_only: choose one")
    evaluates = options.eval_only or options.test_only
    if options.ensemble and (options.resume or options.checkpoint or not evaluates):
        raise UserError(
            "--ensemble: needs --eval_only or --test_only, and replaces --resume and --checkpoint"
        )
    others = (evaluates, options.resume, options.checkpoint, options.ensemble)
    if options.stack and any(others):
        raise UserError(
            "--stack: fits a stack of the checkpoints that it names; remove --resume, "
            "--checkpoint, --ensemble, --eval_only and --test_only"
        )
    if options.stack and len(set(options.stack)) < max(2, len(options.stack)):
        raise UserError(
            "--stack: needs two checkpoints or more, each once; a single one is "
            "evaluated with --eval_only True --checkpoint FILE"
        )
    if evaluates and not (options.resume or options.checkpoint or options.ensemble):
        raise UserError(
            "--eval_only and --test_only need a checkpoint: add --resume True, or --checkpoint "
            "with best, last or a file"
        )
    if options.checkpoint and not evaluates and options.resume is not True:
        raise UserError(
            "--checkpoint: needs --eval_only, --test_only or --resume True; --resume auto loads "
            "the last checkpoint of the run folder"
        )
    if options.profile and (evaluates or options.stack or options.check_data):
        raise UserError("--profile: traces training steps; remove the other command")
    if options.resume is True and options.overwrite:
        raise UserError("--resume and --overwrite: choose one")


def boolean(text: str) -> bool:
    """Parse True or False, in any case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


def boolean_or_auto(text: str) -> bool | str:
    """Parse True, False or auto, in any case."""
    return "auto" if text.lower() == "auto" else boolean(text)
