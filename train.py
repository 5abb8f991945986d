"""Trains, evaluates and predicts: `python train.py --config configs/config.json -g 0`."""

from system import stopping

if __name__ == "__main__":
    stopping.install()  # before the imports below, which take seconds

import multiprocessing
import signal
import sys
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from callbacks import CheckpointTimer, Progress, SilentLog, TensorBoardLog, write_history
from clips.batches import batches_of
from clips.frames import prepare_decoders
from config import Config
from data_loader import build_loader, read_class_names, read_set
from doctor.data_doctor import check_data
from networks.recompute import recompute_activations
from networks.stages import describe
from reporting.confusion_matrix import save_confusion_matrix
from reporting.page import add_report
from scoring import evaluation
from scoring.ensemble import checkpoint_logits, ensemble_logits, load_to_evaluate
from scoring.results import Origin, write_results
from system import memory, processes
from system.command_line import parse_arguments
from system.config_file import load_config
from system.device import (
    autocast,
    check_precision,
    choose_device,
    devices_in_words,
    gpu_numbers,
    prepare,
    to_network_input,
)
from system.errors import UserError, exit_status
from system.profiling import StepProfile
from training.batchnorm import refresh_statistics
from training.mixing import mixed
from training.optimization import learning_rate, set_learning_rate, training_is_over
from training.resuming import load_for, load_for_auto, named_checkpoint, which_weights
from training.run import Run, save_run, say_what_changed, start_run
from training.run_folder import (
    HISTORY_FILE,
    LOG_FOLDER,
    PROFILE_FOLDER,
    is_own,
    make_run_folder,
    prepare_run_folder,
    versions,
)
from utils import seed_step


def train(run: Run, train_loader, validation_loader, log: TensorBoardLog) -> None:
    """Epochs of training and validation until the config says that it is over.

    Raises Stopped, with everything saved, after SIGTERM or Ctrl-C.
    """
    timer = CheckpointTimer(run.config.checkpoint_minutes)
    with stopping.deferred():
        try:
            while not (reason := training_is_over(run.config, run.epoch, run.validation_losses)):
                train_epoch(run, train_loader, log, timer)
                num_steps = (run.epoch + 1) * len(train_loader)
                if num_steps <= run.config.batchnorm_refresh_steps:
                    refresh_statistics(
                        run.evaluated_model, train_loader, run.epoch, run.device, run.config
                    )
                logits = validate(run, validation_loader)
                finish_epoch(run, logits, validation_loader.dataset.annotations, log)
                timer.restart()
        except stopping.Stopped as stopped:
            run.loss_watch.settle()
            save_run(run, log.sizes())
            # Once a process has left, the launcher gives the others only seconds to finish.
            processes.highest(saved=1)
            print(f"stopped by {signal.Signals(stopped.signal_number).name} after epoch "
                  f"{run.epoch}, step {run.step}; all is saved: --resume True goes on")
            raise
        best = f"best validation top-1 {run.best_top1:.2f} %" if run.best_top1 >= 0 else "no epoch"
        print(f"training is over: {reason}; {best} in {run.config.run_folder}")
        stopping.over()


def train_epoch(run: Run, loader, log: TensorBoardLog, timer: CheckpointTimer) -> None:
    """The steps of an epoch that are still to be done."""
    config, num_steps, first_step = run.config, len(loader), run.step
    annotations = loader.dataset.annotations
    loader.batch_sampler.start_at(run.epoch, run.step)
    progress = Progress(run.epoch, run.step, num_steps, config, run.device)
    run.network.train()
    memory.reset_peak(run.device)
    start = time.perf_counter()
    for batch in progress.over(run.profile.over(batches_of(loader))):
        counts = agree(run, len(batch.labels), run.step > first_step, log, timer)
        run.bad_clips.note(batch, annotations, "train", run.epoch + 1)
        if run.epoch == 0 and run.step == 0 and len(batch.clips):
            log.input_strip(batch.clips[0, 0, ..., :3].numpy(), 0)
        rate = learning_rate(config, run.epoch + (run.step + 1) / num_steps, run.validation_losses)
        set_learning_rate(run.optimizer, rate)
        seed_step(config.seed, run.epoch, run.step)

        train_step(run, batch, annotations.ids, counts)

        run.step += 1
        now = time.perf_counter()
        run.seconds, start = run.seconds + now - start, now
        progress.update(run.step, sum(counts), run.metrics, rate)
    agree(run, 0, run.step > first_step, log, timer)
    run.loss_watch.settle()
    progress.close()
    run.bad_clips.report(annotations, "train", run.epoch + 1)


def agree(run: Run, num_clips: int, has_moved: bool, log: TensorBoardLog, timer) -> list[int]:
    """What all processes do between two steps, in one exchange. Returns the `num_clips` of each.

    A checkpoint that is due, a signal, or a bad loss or gradient of an earlier step in one process
    is one in all. Raises Stopped, and UserError for a bad loss.
    """
    asked = processes.gather_ints(
        clips=num_clips, bad=run.loss_watch.found_bad(), signal=stopping.requested(),
        save=has_moved and timer.is_due(),
    )  # fmt: skip
    is_bad, save, number = (max(row[key] for row in asked) for key in ("bad", "save", "signal"))
    if is_bad or save or number:
        run.loss_watch.settle()
    if save:
        save_run(run, log.sizes())
        timer.restart()
    if number:
        raise stopping.Stopped(number)
    return [row["clips"] for row in asked]


def train_step(run: Run, batch, ids, counts) -> None:
    """Forward, backward, and a step of the optimizer.

    The loss is the mean over the clips of all processes and parts, whatever their sizes.
    ids: those of the set, for messages; counts: clips of the batch in each process.
    """
    config, section = run.config, run.profile.section
    num_parts = min(config.accumulate_steps, min(counts) // 2)
    if not num_parts:
        print(f"step {run.step + 1} left out: too few of its clips can be read")
        return
    with section("copy"):
        clips, labels = (tensor.to(run.device, non_blocking=True)
                         for tensor in (batch.clips[:, 0], batch.labels))
    run.optimizer.zero_grad()
    batch_loss = 0.0
    for part in range(num_parts):
        is_last = part == num_parts - 1
        with nullcontext() if is_last or run.network is run.model else run.network.no_sync():
            batch_loss += forward_and_backward(
                run, clips[part::num_parts], labels[part::num_parts], sum(counts)
            )
    with section("optimizer"):
        gradient_norm = clip_gradients(run)
        run.metrics.update_norm(gradient_norm)
        is_bad = torch.stack([~batch_loss.isfinite(), _is_bad_gradient(run, gradient_norm)])
        rate = run.optimizer.param_groups[0]["lr"]
        run.loss_watch.note(is_bad, run.epoch, run.step, rate, ids[batch.indices.numpy()])
        run.scaler.step(run.optimizer)
        run.scaler.update()
    if run.average:
        run.average.update(run.model)


def forward_and_backward(run: Run, clips, labels, num_clips) -> torch.Tensor:
    """Adds the gradients of some clips to those that are there; returns the sum of their losses.

    clips: uint8 [N, T, H, W, C]; num_clips: of the whole batch, over all processes.
    """
    config, section = run.config, run.profile.section
    with section("normalise"):
        clips = to_network_input(clips, run.device, config)  # [N, C, T, H, W]
    clips, targets = mixed(clips, labels, len(run.class_names), config)
    with section("forward"), autocast(run.device, config.precision):
        logits = run.network(clips)
    loss_sum = F.cross_entropy(
        logits.float(), targets, reduction="sum", label_smoothing=config.label_smoothing
    )
    with section("backward"):
        # Gradients of processes are averaged, so each counts its share of them all. A loss of inf
        # can have finite gradients; as NaN they keep the optimizers of all processes from moving.
        share = processes.world_size() / num_clips
        share = torch.where(loss_sum.detach().isfinite(), share, torch.nan)
        run.scaler.scale(loss_sum * share).backward()
    run.metrics.update(loss_sum, logits, labels)
    return loss_sum.detach()


def clip_gradients(run: Run) -> torch.Tensor:
    """The norm of all gradients before they are scaled down to `grad_clip`; on the device."""
    run.scaler.unscale_(run.optimizer)
    parameters = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters])
    if run.config.grad_clip:
        clip_grads_with_norm_(parameters, run.config.grad_clip, norm)
    return norm


def _is_bad_gradient(run: Run, norm) -> torch.Tensor:
    """Whether the norm is NaN or inf, and not for fp16's scale, which then comes down by itself."""
    scale = run.scaler.scale(torch.ones((), device=run.device))
    return ~norm.isfinite() & (scale <= 1)


def validate(run: Run, loader, set_name="validation") -> torch.Tensor:
    """Logits of all clips of the validation or test set."""
    annotations = loader.dataset.annotations

    def note_bad_clips(batch):
        run.bad_clips.note(batch, annotations, set_name, run.epoch + 1)

    model = run.evaluated_model
    logits = evaluation.compute_logits(model, loader, run.device, set_name, note_bad_clips)
    run.bad_clips.report(annotations, set_name, run.epoch + 1)
    return logits


def finish_epoch(run: Run, logits, annotations, log: TensorBoardLog) -> None:
    """Adds the epoch to the history, moves on to the next, and saves."""
    labels = torch.from_numpy(annotations.labels)
    scores = evaluation.score(logits, labels)
    metrics = run.metrics.state()
    num_clips = metrics["loss"][1]
    if not num_clips:
        raise UserError(
            f"train_data_csv: no step of epoch {run.epoch + 1} could be done, since too few clips "
            "of each batch can be read; --check_data finds them all"
        )
    # Where fp16's scale was too high for each step, there was no norm of a gradient.
    train_scores = {name: total / count for name, (total, count) in metrics.items() if count}
    run.epoch += 1
    rate = learning_rate(run.config, run.epoch, run.validation_losses)
    # A run that was stopped in validation has had no step since to set it.
    set_learning_rate(run.optimizer, rate)
    # Of the process that needs most; of a resumed epoch, since it went on.
    peak = processes.highest(peak=memory.peak_bytes(run.device))["peak"]
    row = {"epoch": run.epoch} | train_scores | {"learning_rate": rate, "seconds": run.seconds,
                                                 "clips_per_second": num_clips / run.seconds,
                                                 "peak_memory_mib": peak / memory.MIB}
    run.history.append(row | {f"val_{name}": value for name, value in scores.items()})
    run.start_epoch()
    is_best = run.epoch == 1 or scores["top1"] > run.best_top1
    run.best_top1 = max(scores["top1"], run.best_top1)

    log.epoch(run.history[-1])
    if is_best and processes.is_main():
        matrix = evaluation.confusion_matrix(logits, labels)
        log.confusion_matrix(matrix, run.class_names, run.epoch)
    save_run(run, log.sizes(), is_best)
    if processes.is_main():
        write_history(run.config.run_folder / HISTORY_FILE, run.history)
    print(f"epoch {run.epoch:>3}   train: {evaluation.format_scores(train_scores)}   "
          f"validation: {evaluation.format_scores(scores)}   lr {rate:.1e}   "
          f"{row['clips_per_second']:.1f} clips/s   peak {memory.format_bytes(peak)}"
          f"{'   best' if is_best else ''}", flush=True)


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
        save_confusion_matrix(folder, annotations, logits, class_names)
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
    prepare_decoders()
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
