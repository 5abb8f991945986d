"""The loop: epochs of training steps and validation, and what is done after each."""

import signal
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F

import evaluation
import memory
import processes
import stopping
from augmentation import mixed
from callbacks import CheckpointTimer, Progress, TensorBoardLog, write_history
from data_loader import batches_of
from device import autocast, to_network_input
from errors import UserError
from optimization import learning_rate, set_learning_rate, training_is_over
from run import HISTORY_FILE, Run, save_run
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
                logits = validate(run, validation_loader)
                finish_epoch(run, logits, validation_loader.dataset.annotations, log)
                timer.restart()
        except stopping.Stopped as stopped:
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
    config, num_steps = run.config, len(loader)
    annotations = loader.dataset.annotations
    loader.batch_sampler.start_at(run.epoch, run.step)
    progress = Progress(run.epoch, run.step, num_steps, config, run.device)
    run.network.train()
    memory.reset_peak(run.device)
    start = time.perf_counter()
    for batch in progress.over(run.profile.over(batches_of(loader))):
        run.bad_clips.note(batch, annotations, "train", run.epoch + 1)
        if run.epoch == 0 and run.step == 0 and len(batch.clips):
            log.input_strip(batch.clips[0, 0, ..., :3].numpy(), 0)
        rate = learning_rate(config, run.epoch + (run.step + 1) / num_steps, run.validation_losses)
        set_learning_rate(run.optimizer, rate)
        seed_step(config.seed, run.epoch, run.step)

        num_clips = train_step(run, batch, annotations)

        run.step += 1
        now = time.perf_counter()
        run.seconds, start = run.seconds + now - start, now
        progress.update(run.step, num_clips, run.metrics, rate)
        asked = processes.highest(signal=stopping.requested(), save=timer.is_due())
        if asked["save"] or asked["signal"]:
            run.loss_watch.settle()
        if asked["save"]:
            save_run(run, log.sizes())
            timer.restart()
        if asked["signal"]:
            raise stopping.Stopped(asked["signal"])
    run.loss_watch.settle()
    progress.close()
    run.bad_clips.report(annotations, "train", run.epoch + 1)


def train_step(run: Run, batch, annotations) -> int:
    """Forward, backward, and a step of the optimizer. Returns the clips in it, of all processes.

    The loss is the mean over the clips of all processes and parts, whatever their sizes.
    """
    config = run.config
    counts = processes.counts(len(batch.labels))
    num_clips, num_parts = sum(counts), min(config.accumulate_steps, min(counts) // 2)
    if not num_parts:
        print(f"step {run.step + 1} left out: too few of its clips can be read")
        return 0
    run.optimizer.zero_grad()
    batch_loss, section = 0.0, run.profile.section
    for part in range(num_parts):
        clips, labels = batch.clips[part::num_parts, 0], batch.labels[part::num_parts]
        with section("copy"):
            clips = to_network_input(clips, run.device, config)  # [N, C, T, H, W]
            labels = labels.to(run.device, non_blocking=True)
        clips, targets = mixed(clips, labels, len(run.class_names), config)
        is_last = part == num_parts - 1
        with nullcontext() if is_last or run.network is run.model else run.network.no_sync():
            with section("forward"), autocast(run.device, config.precision):
                logits = run.network(clips)
            loss_sum = F.cross_entropy(
                logits.float(), targets, reduction="sum", label_smoothing=config.label_smoothing
            )
            with section("backward"):
                # Gradients of processes are averaged, so each counts its share of them all.
                mean_loss = loss_sum * (processes.world_size() / num_clips)
                run.scaler.scale(mean_loss).backward()
        run.metrics.update(loss_sum, logits, labels)
        batch_loss += loss_sum.detach()
    rate = run.optimizer.param_groups[0]["lr"]
    ids = annotations.ids[batch.indices.numpy()]
    run.loss_watch.note(batch_loss, run.epoch, run.step, rate, ids)
    with section("optimizer"):
        run.scaler.step(run.optimizer)
        run.scaler.update()
    if run.average:
        run.average.update(run.model)
    return num_clips


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
    train_scores = {name: total / count for name, (total, count) in metrics.items()}
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
