"""Train, evaluate and predict: `python train.py --config configs/config.json -g 0`."""

from system import stopping
from system.errors import UserError, end_program, exit_status

if __name__ == "__main__":  # a signal during the imports below, which take seconds, ends it cleanly
    stopping.install()

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from callbacks import build_callbacks
from clips.batches import Batch, batches_of, end_workers
from clips.frames import prepare_decoders
from config import Config
from data_loader import batch_loader, build_loader, read_data
from doctor.data_doctor import check_data
from features.computing import compute_features
from features.feature_files import delete_features
from model import normalize_clips
from networks.average import combine_members
from networks.recompute import recompute_activations
from networks.stages import describe, format_description
from reporting.page import add_report, write_evaluation
from scoring.baselines import baselines_of_run
from scoring.ensemble import evaluate_checkpoints, stack_checkpoints
from scoring.evaluation import (
    balanced_accuracy,
    compute_logits,
    last_and_best,
    score,
    score_intervals,
)
from scoring.fitting import fit_ridge_models
from scoring.results import is_scored, print_results
from system import memory, processes
from system.command_line import parse_arguments
from system.config_file import load_config
from system.device import (
    autocast,
    check_precision,
    choose_device,
    describe_devices,
    gpu_numbers,
    prepare,
)
from system.files import SECONDS_TO_NOTICE, FolderLock
from system.profiling import StepProfile
from training.batchnorm import refresh_statistics
from training.callback import Callback, save_with_callbacks, sync_callbacks
from training.freezing import set_to_training
from training.mixing import mix_batch
from training.optimization import (
    clip_gradients,
    learning_rate,
    set_learning_rate,
    training_is_over,
    training_loss,
)
from training.pretrained import with_normalization
from training.resuming import checkpoint_to_resume, named_checkpoint
from training.run import Run, start_run, validation_columns
from training.run_folder import (
    PROFILE_FOLDER,
    check_unoccupied,
    is_in_run_folder,
    is_recorded,
    make_run_folder,
    prepare_run_folder,
    versions,
)
from utils import seed_step

# --- the loop ----------------------------------------------------------------------------------


def train(run: Run, train_loader, validation_loader, callbacks: list[Callback]) -> str:
    """Train and validate, epoch by epoch; return why training is over.

    Raises Stopped after SIGTERM or Ctrl-C, once everything is saved.
    """
    state = run.state
    with stopping.deferred():
        try:
            while not (
                reason := training_is_over(run.config, state.epoch, state.validation_losses)
            ):
                train_one_epoch(run, train_loader, callbacks)
                refresh_batchnorm(run, train_loader)
                logits, labels = validate(run, validation_loader, callbacks)
                finish_epoch(run, logits, labels, validation_loader, callbacks)
        except stopping.Stopped as stopped:
            save_with_callbacks(run, callbacks)
            # Once a process has exited, the launcher gives the others only seconds to finish.
            processes.all_max(saved=1)
            print(
                f"stopped by {signal.Signals(stopped.signal_number).name} after epoch "
                f"{state.epoch}, step {state.step}; all is saved: --resume True continues"
            )
            raise
        scores = last_and_best(state.history) if state.best_top1 >= 0 else "no epoch"
        print(f"training is over: {reason}; {scores} in {run.config.run_folder}")
        stopping.ignore_signals()
    return reason


def train_one_epoch(run: Run, loader, callbacks: list[Callback]) -> None:
    """Run the remaining steps of the current epoch."""
    config, state, num_steps = run.config, run.state, len(loader)
    loader.batch_sampler.start_at(state.epoch, state.step)
    set_to_training(run.network)
    for callback in callbacks:
        callback.on_epoch_start(run, loader)
    start = time.perf_counter()
    for batch in batches_of(loader):
        counts = sync_callbacks(callbacks, run, len(batch.labels))  # clips in each process
        for callback in callbacks:
            callback.on_batch(run, batch)
        rate = learning_rate(
            config, state.epoch + (state.step + 1) / num_steps, state.validation_losses
        )
        set_learning_rate(run.optimizer, rate)
        seed_step(config.seed, state.epoch, state.step)
        if min(counts) >= 2:  # BatchNorm needs two
            train_step(run, batch, counts, callbacks)
        else:
            print(f"step {state.step + 1} skipped: too few of its clips can be read")
        state.step += 1
        now = time.perf_counter()
        state.seconds, start = state.seconds + now - start, now
        for callback in callbacks:
            callback.on_step(run, sum(counts))
    sync_callbacks(callbacks, run, 0)
    for callback in callbacks:
        callback.on_validation_start(run)


def train_step(
    run: Run, batch: Batch, counts: list[int], callbacks: Sequence[Callback] = ()
) -> None:
    """Move the clips to the device, run forward and backward, and step the optimizer.

    counts: clips of the batch in each process.
    """
    section, num_parts = run.profile.section, min(run.config.accumulate_steps, min(counts) // 2)
    with section("copy"):
        clips = batch.clips[:, 0].to(run.device, non_blocking=True)  # uint8 [N, T, H, W, C]
        labels = batch.labels.to(run.device, non_blocking=True)
    run.optimizer.zero_grad()
    loss_sum = 0.0
    for part in range(num_parts):
        with processes.gradients_shared(run.network, part == num_parts - 1):
            part_of_all = slice(part, None, num_parts)
            loss_sum += forward_and_backward(run, clips[part_of_all], labels[part_of_all], counts)
    with section("optimizer"):
        run.scaler.unscale_(run.optimizer)
        gradient_norm = clip_gradients(run.model, run.config.grad_clip)
        run.state.metrics.update_norm(gradient_norm)
        for callback in callbacks:
            callback.before_optimizer_step(run, batch, loss_sum, gradient_norm)
        run.scaler.step(run.optimizer)  # does nothing if a gradient is NaN or inf
        run.scaler.update()
    if run.average:
        run.average.update_parameters(run.model)


def forward_and_backward(run: Run, clips, labels, counts: list[int]) -> torch.Tensor:
    """Accumulate the gradients of some clips; return the sum of their losses.

    The loss is the mean over the clips of all processes and parts, whatever their sizes.
    clips: uint8 [N, T, H, W, C] on the device.
    """
    config, section = run.config, run.profile.section
    with section("normalise"):
        clips = normalize_clips(clips, run.device, config)  # [N, C, T, H, W]
    clips, targets = mix_batch(clips, labels, len(run.class_names), config)
    with section("forward"), autocast(run.device, config.precision):
        logits = run.network(clips)
    loss_sum = training_loss(logits, targets, config.label_smoothing)
    with section("backward"):
        # DDP averages gradients over processes, so each weights its part. An inf loss can have
        # finite gradients; as NaN they make the optimizers of all processes skip the step.
        weight = processes.world_size() / sum(counts)
        weight = torch.where(loss_sum.detach().isfinite(), weight, torch.nan)
        run.scaler.scale(loss_sum * weight).backward()
    run.state.metrics.update(loss_sum, combine_members(logits, config.combine), labels)
    return loss_sum.detach()


def refresh_batchnorm(run: Run, loader) -> None:
    """Recompute BatchNorm's running statistics, which lag behind in the first steps."""
    if (run.state.epoch + 1) * len(loader) <= run.config.batchnorm_refresh_steps:
        refresh_statistics(run.evaluated_network, loader, run.state.epoch, run.device, run.config)


def validate(run: Run, loader, callbacks: list[Callback]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [N, classes] and labels [N] of the validation set."""

    def on_batch(batch):
        for callback in callbacks:
            callback.on_validation_batch(run, batch)

    logits = compute_logits(
        run.evaluated_network, len(run.class_names), loader, run.device, "validation", on_batch
    )
    labels = torch.from_numpy(loader.dataset.annotations.labels)
    for callback in callbacks:
        callback.on_validation_end(run, logits, labels)
    return logits, labels


def finish_epoch(run: Run, logits, labels, validation_loader, callbacks: list[Callback]) -> None:
    """Score the epoch, add its row to the history, and move on to the next epoch."""
    scores = score(logits, labels)
    groups = validation_loader.dataset.annotations.groups
    interval = score_intervals(logits, labels, groups)["top1"]
    scores |= {"top1_low": interval.low, "top1_high": interval.high}
    scores["balanced"] = balanced_accuracy(logits, labels)
    row = epoch_row(run) | validation_columns(scores)
    for callback in callbacks:
        callback.add_to_row(run, row)
    is_best = run.state.finish_epoch(row)
    # A run resumed in validation has had no step to set it.
    set_learning_rate(run.optimizer, row["learning_rate"])
    for callback in callbacks:
        callback.on_epoch_end(run, is_best)


def epoch_row(run: Run) -> dict[str, float]:
    """Return the training columns of the epoch's row. Every process must call this."""
    state, metrics = run.state, run.state.metrics.state()
    num_clips, epoch = metrics["loss"][1], state.epoch + 1
    if not num_clips:
        raise UserError(
            f"train_data_csv: epoch {epoch} has no step, since too few clips "
            "of each batch can be read; --check_data finds them all"
        )
    # The highest of all processes; in a resumed epoch, since it was resumed.
    peak = processes.all_max(peak=memory.peak_bytes(run.device))["peak"]
    row = {"epoch": epoch}
    # If fp16's scale was too high in each step, there is no gradient norm.
    row |= {name: total / count for name, (total, count) in metrics.items() if count}
    rate = learning_rate(run.config, epoch, state.validation_losses)
    return row | {
        "learning_rate": rate,
        "seconds": state.seconds,
        "clips_per_second": num_clips / state.seconds,
        "peak_memory_mib": peak / memory.MIB,
    }


# --- the commands ------------------------------------------------------------------------------


def run_training(config: Config, options, device) -> None:
    class_names, (train_set, validation_set) = read_data(config, ["train", "validation"])
    checkpoint = processes.broadcast_from_main(checkpoint_to_resume, config, options, class_names)
    config = processes.broadcast_from_main(with_normalization, config, checkpoint)
    train_loader = build_loader(train_set, config, True, device)
    validation_loader = build_loader(validation_set, config, False, device)
    is_resumed = checkpoint is not None and is_in_run_folder(checkpoint["path"], config)
    if not (is_resumed or options.overwrite):  # before minutes of work
        processes.broadcast_from_main(check_unoccupied, config.run_folder)
    run = start_run(
        config, class_names, device, checkpoint, train_set.digest(), train_set.folder.identity
    )
    baselines = baselines_of_run(run, train_set, validation_set)
    if config.sync_batchnorm:
        processes.synchronise_batchnorm(run.model, device)
    num_clips = -(-config.batch_size // (processes.world_size() * config.accumulate_steps))
    # Before the first epoch, in log files, too.
    print(format_description(describe(run.model, config.clip_shape), num_clips), flush=True)
    devices = describe_devices(device, config, is_trained=True)
    processes.broadcast_from_main(
        prepare_run_folder, config, is_resumed, options.overwrite, devices
    )
    if not (config.feature_versions or is_resumed):  # of a run that was killed while computing
        processes.broadcast_from_main(delete_features, config.run_folder)
    if config.feature_versions and not run.is_over:
        sets = compute_features(run, train_set, validation_set)
        if sets:
            run.uses_features = True
            train_loader, validation_loader = (
                batch_loader(features, loader.batch_sampler, device, num_workers=0)
                for features, loader in zip(sets, (train_loader, validation_loader), strict=True)
            )
    if checkpoint is None:
        fit_ridge_models(run, train_loader)
    prepare_network(run, train_loader)
    if options.profile:
        run.profile = StepProfile(config.run_folder / PROFILE_FOLDER, device)
    fit(run, train_loader, validation_loader, build_callbacks(run, baselines), checkpoint)


def prepare_network(run: Run, train_loader) -> None:
    """Set `run.network`: what the loop trains, compiled, in parts or in parallel, as configured."""
    config, network = run.config, run.part_of(run.model)
    if config.checkpoint_activations:
        recompute_activations(run.model)
    if config.compile:
        network.compile(dynamic=False)  # shapes: whole batches, and an epoch's last one
    num_clips = train_loader.batch_sampler.clips_per_part(config.accumulate_steps)
    run.network = processes.parallel(
        network,
        run.device,
        (num_clips, *train_loader.dataset.network_shape),
        autocast(run.device, config.precision),
    )


def fit(run: Run, train_loader, validation_loader, callbacks: list[Callback], checkpoint) -> None:
    """Train, and call the callbacks at the start and at the end.

    checkpoint: the one that the run was resumed from, or None.
    """
    try:
        for callback in callbacks if checkpoint else ():
            callback.load(run, checkpoint)
        is_complete = is_recorded(run.config, run.state.history) and is_scored(run.config)
        if not (run.is_over and is_complete):
            for callback in callbacks:
                callback.on_start(run, train_loader, validation_loader)
            if run.is_over:  # it died after its last checkpoint
                validate(run, validation_loader, callbacks)
        reason = train(run, train_loader, validation_loader, callbacks)
        for callback in callbacks:
            callback.on_end(run, reason)
    except BaseException as error:
        if isinstance(error, OSError):  # a full disk does not name it
            error.filename = error.filename or str(run.config.run_folder)
        with suppress(OSError):
            for callback in callbacks:
                callback.on_exception(run, error)
        raise
    finally:
        for callback in callbacks:
            callback.close(run)


def run_evaluation(config: Config, options, device, set_name: str) -> None:
    """Score the validation set, or predict the test set, with one or several checkpoints."""
    class_names, (annotations,) = read_data(config, [set_name])
    # Before the work: otherwise, results could not be written and would be lost.
    folder = processes.broadcast_from_main(make_run_folder, config)
    paths = options.ensemble or [named_checkpoint(config, options.checkpoint)]
    logits, origin, weights = evaluate_checkpoints(
        paths, config, class_names, annotations, device, set_name, bool(options.ensemble)
    )
    stopping.ignore_signals()
    if not processes.is_main():
        return
    write_evaluation(folder, annotations, logits, class_names, origin)
    print_results(annotations, logits, class_names)
    print(f"{'scored' if annotations.has_labels else 'predicted by'}: {weights}")
    print(f"written to {folder}")
    if annotations.has_labels:
        add_report(folder)


def run_stacking(config: Config, options, device) -> None:
    """Fit a stack of several checkpoints on the validation set."""
    class_names, (annotations,) = read_data(config, ["validation"])
    folder = processes.broadcast_from_main(make_run_folder, config)
    stack_checkpoints(options.stack, config, class_names, annotations, device, folder)


# --- the command line --------------------------------------------------------------------------


def config_path(options, device_type: str, lock: FolderLock) -> str:
    """Return the config file of the flags, or one made for the folder of clips they name.

    lock: of the run folder, taken before anything is written there.
    """
    if options.config:
        return options.config
    from own_clips.start import config_for_folder  # not at the top: importing pandas is slow

    return config_for_folder(options, device_type, lock)


def run_command(options, arguments, lock: FolderLock) -> int:
    if options.check_data:
        if processes.launched():
            raise UserError("--check_data: runs in one process; start it without torchrun")
        with lock:
            path = config_path(options, "cpu", lock)
        return check_data(load_config(path, options.overrides))
    prepare_decoders()
    device = choose_device(options.gpus, options.use_gpu)
    if device.type == "cuda" and "," in (options.gpus or ""):
        return processes.launch(__file__, arguments, gpu_numbers(options.gpus))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinning memory, which names no device, would use GPU 0
    processes.join(device)
    set_names = {"train": ["train", "validation"], "test": ["test"]}.get(
        options.command, ["validation"]
    )
    path = processes.broadcast_from_main(config_path, options, device.type, lock)
    config = processes.broadcast_from_main(load_config, path, options.overrides, set_names)
    check_precision(config.eval_precision, device)
    prepare(device, config.precision, config.deterministic)
    numbers = ", ".join(f"{package} {version}" for package, version in versions().items())
    devices = describe_devices(device, config, options.command == "train")
    print(f"{devices}, {numbers}, run folder {config.run_folder}")
    processes.report_workers(config.num_workers)
    try:
        if options.command == "train":
            patience = SECONDS_TO_NOTICE if options.resume else 0  # a cluster resumes automatically
            processes.broadcast_from_main(lock.take, config.run_folder, patience)
            run_training(config, options, device)
        elif options.command == "stack":
            run_stacking(config, options, device)
        else:
            run_evaluation(config, options, device, set_names[0])
        processes.wait_for_all()  # meanwhile the main one writes a report
    finally:
        end_workers()
    return 0


def main(arguments=None) -> int:
    """Run the command; return 0, 2 for a user's mistake, or 128 + the number of a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def command():
        stopping.raise_on_signal()
        processes.rendezvous()
        with FolderLock() as lock:
            return run_command(parse_arguments(arguments), arguments, lock)

    with stopping.watched_output(), processes.only_main_prints():
        try:
            status = exit_status(command, processes.is_first_to_report)
        finally:
            stopping.ignore_signals()
        processes.shutdown(has_failed=status != 0)
        return status


if __name__ == "__main__":
    end_program(main())
