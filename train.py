"""Trains, evaluates and predicts: `python train.py --config configs/config.json -g 0`."""

import argparse
import sys
import time

import torch
import torch.nn.functional as F

import evaluation
from callbacks import Progress, TensorBoardLog, write_history
from config import Config, load_config
from data_doctor import check_data
from data_loader import batches_of, build_loader, read_class_names, read_set
from errors import UserError, message_for_user
from model import describe
from optimization import learning_rate, training_is_over
from run import (
    LOG_FOLDER,
    Run,
    load_pretrained,
    load_run_weights,
    make_run_folder,
    prepare_run_folder,
    resume_run,
    save_run,
    start_run,
    versions,
)
from utils import TrainingMetrics, choose_device, seed_step, to_network_input


def train_epoch(run: Run, loader, log: TensorBoardLog) -> dict[str, float]:
    """One pass over the training clips. Returns loss, top-1, top-k, learning rate and speed."""
    config, num_steps = run.config, len(loader)
    loader.batch_sampler.epoch = run.epoch
    metrics = TrainingMetrics(len(run.class_names))
    progress = Progress(run.epoch, config, num_steps)
    start = time.perf_counter()
    run.model.train()
    for step, batch in enumerate(batches_of(loader)):
        seed_step(config.seed, run.epoch, step)
        rate = learning_rate(config, run.epoch + (step + 1) / num_steps, run.validation_losses)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        clips = batch.clips[:, 0]  # [N, T, H, W, C]
        labels = batch.labels.to(run.device, non_blocking=True)
        if run.epoch == 0 and step == 0:
            log.input_strip(clips[0].numpy(), epoch=0)

        logits = run.model(to_network_input(clips, run.device, config.mean, config.std))
        loss = F.cross_entropy(logits, labels)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()

        metrics.update(loss, logits, labels)
        progress.update(step, len(labels), metrics, rate)
    progress.close()
    averages = metrics.averages()  # waits for the GPU, so the time below is honest
    seconds = time.perf_counter() - start
    speed = progress.num_clips / seconds
    return averages | {"learning_rate": rate, "seconds": seconds, "clips_per_second": speed}


def train(run: Run, train_loader, validation_loader, log: TensorBoardLog) -> None:
    """Epochs of training and validation until the config says that it is over."""
    folder = run.config.run_folder
    labels = torch.from_numpy(validation_loader.dataset.annotations.labels)
    while not (reason := training_is_over(run.config, run.epoch, run.validation_losses)):
        row = {"epoch": run.epoch + 1} | train_epoch(run, train_loader, log)
        logits = evaluation.compute_logits(run.model, validation_loader, run.device, "validation")
        scores = evaluation.score(logits, labels)
        row |= {f"val_{name}": value for name, value in scores.items()}

        run.history.append(row)
        run.epoch += 1
        is_best = run.epoch == 1 or scores["top1"] > run.best_top1
        run.best_top1 = max(scores["top1"], run.best_top1)
        log.epoch(row)
        if is_best:
            matrix = evaluation.confusion_matrix(logits, labels)
            log.confusion_matrix(matrix, run.class_names, run.epoch)
        write_history(folder / "history.csv", run.history)
        save_run(run, log.sizes(), is_best)
        print(f"epoch {run.epoch:>3}   train: {evaluation.format_scores(row_scores(row))}   "
              f"validation: {evaluation.format_scores(scores)}   lr {row['learning_rate']:.1e}   "
              f"{row['clips_per_second']:.1f} clips/s{'   best' if is_best else ''}", flush=True)
    print(f"training is over: {reason}; best validation top-1 {run.best_top1:.2f} % in {folder}")


def row_scores(row):
    return {name: value for name, value in row.items() if name == "loss" or name.startswith("top")}


# --- the three commands ------------------------------------------------------------------------


def run_training(config: Config, options, device) -> None:
    class_names = read_class_names(config)
    train_set = read_set(config, "train", class_names)
    validation_set = read_set(config, "validation", class_names)
    run = start_run(config, class_names, device)
    checkpoint = resume_run(run) if options.resume else {}
    if config.pretrained and not options.resume:
        load_pretrained(run)
    train_loader = build_loader(train_set, config, True, device)
    validation_loader = build_loader(validation_set, config, False, device)
    print(describe(run.model, (config.clip_size, *config.crop)))

    folder = prepare_run_folder(config, options.resume, options.overwrite)
    log = TensorBoardLog(folder / LOG_FOLDER, checkpoint.get("tensorboard"))
    if run.epoch == 0:
        log.hyperparameters(config, ["loss", "top1"])
    try:
        train(run, train_loader, validation_loader, log)
    finally:
        log.close()


def run_evaluation(config: Config, device, set_name: str) -> None:
    """Scores the validation set, or predicts the test set, with the checkpoint's weights."""
    class_names = read_class_names(config)
    annotations = read_set(config, set_name, class_names)
    run = start_run(config, class_names, device)
    load_run_weights(run)
    folder = make_run_folder(config)  # before the work: results that find no place are lost
    loader = build_loader(annotations, config, False, device)
    logits = evaluation.compute_logits(run.model, loader, device, set_name)
    prefix = "test_" if set_name == "test" else ""
    evaluation.write_predictions(
        folder / f"{prefix}predictions.csv", annotations, logits, class_names
    )
    if set_name == "test":
        evaluation.write_submission(folder / "test_submission.csv", annotations, logits,
                                    class_names)
        print(f"{len(annotations):,} clips predicted; no labels, so no accuracy")
    else:
        labels = torch.from_numpy(annotations.labels)
        matrix = evaluation.confusion_matrix(logits, labels)
        evaluation.write_logits(folder / "logits.npz", annotations, logits, class_names)
        evaluation.draw_confusion_matrix(matrix, class_names).savefig(
            folder / "confusion_matrix.png"
        )
        evaluation.print_report(matrix, class_names)
        print("\n" + evaluation.format_scores(evaluation.score(logits, labels)))
    print(f"written to {folder}")


# --- the command line --------------------------------------------------------------------------


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False, "metavar": "True|False"}
    parser.add_argument("--config", "-c", required=True, help="JSON file (see config.py)")
    parser.add_argument("--gpus", "-g", help="GPU number, or cpu; default: a GPU if there is one")
    parser.add_argument("--use_gpu", **flag | {"default": True}, help="False is the same as -g cpu")
    parser.add_argument("--resume", "-r", **flag, help="go on from the checkpoint")
    parser.add_argument("--eval_only", "-e", **flag, help="score the validation set")
    parser.add_argument("--test_only", "-t", **flag, help="predict the test set")
    parser.add_argument("--check_data", **flag, help="look at every frame of all sets, and stop")
    parser.add_argument("--overwrite", **flag, help="delete the run that is in the run folder")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides",
                        help="override one key of the config; may be repeated")
    return parser.parse_args(arguments)


def run_command(options) -> int:
    if options.eval_only and options.test_only:
        raise UserError("--eval_only and --test_only: choose one")
    if (options.eval_only or options.test_only) and not options.resume:
        raise UserError("--eval_only and --test_only need a checkpoint: add --resume True")
    if options.check_data:
        return check_data(load_config(options.config, options.overrides))
    sets = ["validation"] if options.eval_only else ["train", "validation"]
    config = load_config(
        options.config, options.overrides, ["test"] if options.test_only else sets
    )
    device = choose_device(options.gpus, options.use_gpu)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    numbers = ", ".join(f"{package} {version}" for package, version in versions().items())
    print(f"{name}, {numbers}, run folder {config.run_folder}")
    if options.test_only or options.eval_only:
        run_evaluation(config, device, "test" if options.test_only else "validation")
    else:
        run_training(config, options, device)
    return 0


def main(arguments=None) -> int:
    """Returns the exit status: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        return run_command(parse_arguments(arguments))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
