"""Trains, evaluates and predicts: `python train.py --config configs/config.json -g 0`."""

import stopping

if __name__ == "__main__":
    stopping.install()  # before the imports below, which take seconds

import multiprocessing
import sys

import torch

import processes
from callbacks import SilentLog, TensorBoardLog, write_history
from command_line import parse_arguments
from config import Config
from config_file import load_config
from data_doctor import check_data
from data_loader import build_loader, read_class_names, read_set
from device import (
    autocast,
    check_precision,
    choose_device,
    devices_in_words,
    gpu_numbers,
    prepare,
)
from ensemble import checkpoint_logits, ensemble_logits, load_to_evaluate
from errors import UserError, exit_status
from evaluation import Origin, write_results
from loop import train
from memory import recompute_activations
from model import describe
from profiling import StepProfile
from report import add_report
from run import (
    HISTORY_FILE,
    LOG_FOLDER,
    PROFILE_FOLDER,
    is_own,
    load_for,
    load_for_auto,
    make_run_folder,
    named_checkpoint,
    prepare_run_folder,
    say_what_changed,
    start_run,
    versions,
    which_weights,
)

# --- the commands ------------------------------------------------------------------------------


def run_training(config: Config, options, device) -> None:
    class_names, (train_set, validation_set) = read_data(config, ["train", "validation"])
    checkpoint = processes.from_main(checkpoint_to_resume, config, options, class_names)
    run = start_run(config, class_names, device, checkpoint, train_set.digest())
    if config.sync_batchnorm:
        processes.synchronise_batchnorm(run.model, device)
    train_loader = build_loader(train_set, config, True, device)
    validation_loader = build_loader(validation_set, config, False, device)
    clip_shape = (config.clip_size, *config.crop)
    num_clips = -(-config.batch_size // (processes.world_size() * config.accumulate_steps))
    # In a log, too, before the first epoch.
    print(describe(run.model, clip_shape, num_clips), flush=True)
    if config.checkpoint_activations:
        recompute_activations(run.model)
    if config.compile:
        run.model.compile(dynamic=False)  # shapes: whole batches, and an epoch's last one
    num_clips = train_loader.batch_sampler.clips_per_part(config.accumulate_steps)
    run.network = processes.parallel(run.model, device, (num_clips, *clip_shape),
                                     autocast(device, config.precision))  # fmt: skip
    if options.profile:
        run.profile = StepProfile(config.run_folder / PROFILE_FOLDER, device)

    goes_on = checkpoint is not None and is_own(checkpoint["path"], config)
    devices = devices_in_words(device, config, is_trained=True)
    processes.from_main(prepare_run_folder, config, goes_on, options.overwrite, devices)
    log = SilentLog()
    sizes = checkpoint.get("tensorboard") if goes_on else None
    if processes.is_main():
        log = TensorBoardLog(config.run_folder / LOG_FOLDER, sizes)
        write_history(config.run_folder / HISTORY_FILE, run.history)
    if not sizes:
        log.hyperparameters(config, ["loss", "top1"])
    try:
        train(run, train_loader, validation_loader, log)
    except OSError as error:
        error.filename = error.filename or str(config.run_folder)  # a full disk does not name it
        raise
    finally:
        log.close()
    if processes.is_main():
        add_report(config.run_folder)


def checkpoint_to_resume(config: Config, options, class_names) -> dict | None:
    """What `--resume` goes on from; None: a run is to be started."""
    if options.resume == "auto":
        return load_for_auto(config, class_names, options.overwrite)
    if options.resume:
        return load_for(named_checkpoint(config, options.checkpoint), config, class_names)
    return None


def run_evaluation(config: Config, options, device, set_name: str) -> None:
    """Scores the validation set, or predicts the test set, with one checkpoint or several."""
    class_names, (annotations,) = read_data(config, [set_name])
    # Before the work: results that find no place are lost.
    folder = processes.from_main(make_run_folder, config)
    evaluated = (config, class_names, annotations, device, set_name)
    if options.ensemble:
        logits, origin = ensemble_logits(options.ensemble, *evaluated)
        weights = f"the mean of {len(origin.networks)} networks"
    else:
        path = named_checkpoint(config, options.checkpoint)
        checkpoint = load_to_evaluate(path, config, class_names)
        say_what_changed(config, checkpoint)
        logits = checkpoint_logits(checkpoint, *evaluated)
        origin, weights = Origin.of(config, [checkpoint]), which_weights(config, checkpoint)
    stopping.over()
    if not processes.is_main():
        return
    write_results(folder, annotations, logits, class_names, origin)
    print(f"{'scored' if annotations.has_labels else 'predicted by'}: {weights}")
    print(f"written to {folder}")
    if annotations.has_labels:
        add_report(folder)


def read_data(config: Config, set_names):
    """Class names and annotations; read by the main process, for all."""

    def read():
        class_names = read_class_names(config)
        return class_names, [read_set(config, name, class_names) for name in set_names]

    return processes.from_main(read)


# --- the command line --------------------------------------------------------------------------


def run_command(options, arguments) -> int:
    if options.check_data:
        if processes.launched():
            raise UserError("--check_data: one process does it; start it without torchrun")
        # Each of its workers would import this file anew, which takes seconds.
        multiprocessing.set_forkserver_preload(["train"])
        return check_data(load_config(options.config, options.overrides))
    device = choose_device(options.gpus, options.use_gpu)
    if device.type == "cuda" and "," in (options.gpus or ""):
        return processes.launch(__file__, arguments, gpu_numbers(options.gpus))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinning memory, which names none, would take GPU 0
    processes.join(device)
    set_names = {"evaluate": ["validation"], "test": ["test"]}.get(
        options.command, ["train", "validation"]
    )
    config = processes.from_main(load_config, options.config, options.overrides, set_names)
    check_precision(config.eval_precision, device)
    prepare(device, config.precision, config.deterministic)
    numbers = ", ".join(f"{package} {version}" for package, version in versions().items())
    devices = devices_in_words(device, config, options.command == "train")
    print(f"{devices}, {numbers}, run folder {config.run_folder}")
    try:
        if options.command == "train":
            run_training(config, options, device)
        else:
            run_evaluation(config, options, device, set_names[0])
        processes.wait_for_all()  # the main one has written a report meanwhile
    finally:
        stopping.end_workers()
    return 0


def main(arguments=None) -> int:
    """Returns the exit status: 0, 2 for a user's mistake, 128 + the number of a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command():
        stopping.ready()
        processes.meet()
        status = run_command(parse_arguments(arguments), arguments)
        # After a failure the others may be waiting for this process, and NCCL for them.
        processes.leave()
        return status

    try:
        return exit_status(command, processes.is_first_to_tell)
    finally:
        stopping.over()


if __name__ == "__main__":
    sys.exit(main())
