"""Training for the page: `train.py` as a separate process, whose files the page shows."""

import csv
import json
import math
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

from clips.annotations import read_rows
from clips.frames import natural_key
from clips.packs import open_folder
from own_clips.recipes import FEW_CLIPS, recipe_of
from own_clips.settings import choose_settings, class_balance
from own_clips.survey import survey
from system.config_file import load_config
from system.errors import UserError, summarize
from system.files import try_lock, write_text
from teaching.data_set import DataSet
from teaching.starter import Starter
from training.run_folder import CONFIG_FILE, HISTORY_FILE, LAST_CHECKPOINT, REPORT_FILE, STATUS_FILE
from training.status import Status, read_status

PROJECT = Path(__file__).parent.parent
PREDICTIONS_FILE = "predictions.csv"  # of the validation clips, after the last epoch
# One learns movements from random weights, the other knows what people look like; together they are
# right and sure most often (docs/teaching.md).
NETWORK = {
    "model": "average",
    "members": ["conv3d", "eco"],
    "combine": "product",
    "center_features": True,
}
NETWORK_KEYS = tuple(NETWORK)
# What shortens the wait for the first verdict: no baseline that is trained as long as the network,
# and on a CPU fp32, whose convolutions need no check, and which is as fast in one this small.
QUICK = {"picture_baseline_clips": 0, "time_probe_clips": 0}
CPU_PRECISION = {"precision": "fp32"}
COMPUTING = "computing features"  # the state of a run before its first epoch
MAX_EPOCHS = 30
MIN_CLASSES, MIN_CLIPS = 2, 5  # per class
SHOWN_BYTES = 4000  # of the log
ENDED = "the training ended without a message"
KILLED = f"{ENDED}; it may have been killed, for example because memory was short: see the log"
COLUMNS = ("epoch", "seconds", "top1", "val_top1", "val_linear_top1", "val_most_frequent_top1")


class Training:
    """The training of a data set, which may have been started by an earlier teach.py.

    It works on a snapshot of the clips, and writes a run folder of its own, `trainings/.new/NAME`,
    which replaces `trainings/NAME` when the training is done: until then, that network is kept.
    """

    def __init__(self, data_set: DataSet, device_type: str, gpus: str | None):
        """Read the newest status; gpus: the flag -g."""
        folder = data_set.folder
        self.data_set, self.device_type, self.gpus = data_set, device_type, gpus
        self.config_path, self.log = folder / CONFIG_FILE, folder / "training.log"
        self.snapshot = folder / "snapshot"
        name = folder.name or "clips"
        with suppress(UserError):  # there is none yet; or the folder was renamed
            name = load_config(self.config_path).model_name
        self.run_folder = folder / "trainings" / name
        self.new_run, self.old_run = (
            folder / "trainings" / each / name for each in (".new", ".old")
        )
        self.lock, self.process, self.is_stopping = threading.RLock(), None, False
        self.starter = Starter(PROJECT / "train.py")
        if self.old_run.exists() and not self.run_folder.exists():  # a replacement was interrupted
            self.old_run.rename(self.run_folder)
        shutil.rmtree(self.old_run.parent, ignore_errors=True)

    @property
    def current_run(self) -> Path:
        """Return the folder of the newest training, finished or not."""
        return self.new_run if self.new_run.exists() else self.run_folder

    @property
    def checkpoint(self) -> Path:
        """Return the network to try: that of the last finished training, if there is one.

        The last one, not the best: on a few validation clips that is an early, lucky one.
        """
        finished = self.run_folder / LAST_CHECKPOINT
        return finished if finished.exists() else self.current_run / LAST_CHECKPOINT

    def start(self, is_resumed: bool) -> None:
        """Start a training, or resume the stopped one. Raises UserError if that is not possible.

        Its messages go to the log. `close` ends the process.
        """
        with self.lock, open(self.log, "ab") as log:
            if not try_lock(log.fileno()):
                raise UserError("a training is already running")
            self._replace_if_done()
            if not is_resumed:
                self._check_clips()
                self.data_set.balance()
            self.write_config(anew=not is_resumed)
            if not (is_resumed and self.snapshot.exists()):
                self.data_set.snapshot(self.snapshot)
            if not is_resumed:
                if self.checkpoint.parent == self.new_run and self.checkpoint.exists():
                    self._replace()  # the only network there is: it is kept, though unfinished
                shutil.rmtree(self.new_run, ignore_errors=True)
                self.new_run.mkdir(parents=True)
            values = json.loads(self.config_path.read_text(encoding="utf-8"))
            if is_resumed and (self.snapshot / CONFIG_FILE).exists():
                values = load_config(self.snapshot / CONFIG_FILE).model_dump(exclude_unset=True)
            values |= self.paths(self.snapshot, self.current_run)
            _write_json(self.snapshot / CONFIG_FILE, values)
            self.is_stopping = False
            log.truncate(0)
            (self.current_run / STATUS_FILE).unlink(missing_ok=True)
            arguments = ["--config", str(self.snapshot / CONFIG_FILE)]
            arguments += ["--resume" if is_resumed else "--overwrite", "True"]
            arguments += ["-g", self.gpus] if self.gpus else []
            # The process and its children keep the log locked while they run.
            self.process = self.starter.run(arguments, log)

    def prepare(self) -> None:
        """Do in advance what the start of a training would wait for, if that is possible."""
        with self.lock, suppress(OSError):
            if not self._is_running():
                self.starter.prepare()

    def use(self) -> None:
        """Let the network of a stopped training replace the one before."""
        with self.lock:
            if self._is_running() or not (self.new_run / LAST_CHECKPOINT).exists():
                raise UserError("there is no stopped training whose network could be used")
            self._replace()

    def _replace_if_done(self):
        status = read_status(self.new_run)
        if status and status.state == "done":
            self._replace()

    def _replace(self):
        if self.run_folder.exists():
            self.old_run.parent.mkdir(exist_ok=True)
            self.run_folder.rename(self.old_run)
        self.new_run.rename(self.run_folder)
        shutil.rmtree(self.old_run.parent, ignore_errors=True)

    def make_room(self) -> None:
        """Delete the files of clips that were removed, except from under a running training."""
        self.data_set.empty_trash()
        with self.lock:
            if not self._is_running():
                self.data_set.trim_snapshot(self.snapshot)

    def _check_clips(self):
        counts = self.data_set.counts()
        few = [f"{name} ({count})" for name, count in counts.items() if count < MIN_CLIPS]
        if len(counts) < MIN_CLASSES or few:
            raise UserError(
                f"training needs {MIN_CLASSES} gestures with {MIN_CLIPS} clips "
                f"each; record more{f' of {summarize(few)}' if few else ''}"
            )

    def write_config(self, anew: bool) -> None:
        """Write config.json: the recipe, the reader's keys, and those that depend on the clips.

        Unless `anew`, only the paths change: the folder may have been copied or renamed.
        """
        values = {}
        if self.config_path.exists():
            values = load_config(self.config_path).model_dump(exclude_unset=True)
        if anew:
            values = self._recipe(values) | values | self._choices(values)
        values |= self.paths(self.data_set.folder, self.run_folder)
        _write_json(self.config_path, values)

    def _recipe(self, given: dict) -> dict:
        """Return the keys of the recipe for the page's network, or for the one that is given."""
        quick = QUICK | (CPU_PRECISION if self.device_type == "cpu" else {})
        network = _network(given)
        return recipe_of(network) | network | quick

    def _choices(self, given: dict) -> dict:
        """Return the keys that depend on the clips."""
        clips = self.data_set.enabled()
        labels, sets = zip(*clips.values(), strict=True)
        folder = open_folder(self.data_set.folder / "clips")
        stats = survey(folder, list(clips), load_config(FEW_CLIPS), labels)
        own = [label for label, part in zip(labels, sets, strict=True) if part == "train"]
        choices = choose_settings(stats, len(own), self.device_type, _network(given), True)
        chosen = {choice.key: choice.value for choice in choices + class_balance(own)}
        return chosen | {"num_epochs": min(chosen["num_epochs"], MAX_EPOCHS)}

    def paths(self, data_set: Path, run_folder: Path) -> dict:
        """Return the keys of a config that name a data set's files and a run folder."""
        values = {
            "model_name": run_folder.name,
            "output_dir": str(run_folder.parent),
            "labels_csv": str(data_set / "labels.csv"),
        }
        for set_name, prefix in (("train", "train"), ("validation", "val")):
            values[f"{prefix}_data_folder"] = str(data_set / "clips")
            values[f"{prefix}_data_csv"] = str(data_set / f"{set_name}.csv")
        return values

    def stop(self) -> None:
        """Ask the process to save and exit, like Ctrl-C in a terminal."""
        with self.lock:
            if not self._is_running():
                return
            if self.process and self.process.poll() is None:
                number = self.process.pid
            elif status := read_status(self.current_run):  # started by an earlier teach.py
                number = status.process_id
            else:
                return
            self.is_stopping = True
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)

    def close(self) -> None:
        """Stop the process, and wait until it has saved."""
        self.stop()
        self.starter.close()
        if self.process:
            self.process.wait()

    def _is_running(self) -> bool:
        if self.process and self.process.poll() is None:
            return True
        if not self.log.exists():
            return False
        with open(self.log, "ab") as log:
            return not try_lock(log.fileno())

    def _messages(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def progress(self) -> dict:
        """Return what the page shows: state, rows of the history, and the end of the log."""
        with self.lock:
            is_running = self._is_running()
            if not is_running:
                self._replace_if_done()
            run, checkpoint = self.current_run, self.checkpoint
        status, messages = read_status(run), self._messages()
        state, error = _state(is_running, status, messages, self.is_stopping)
        can_resume = state in ("stopped", "failed") and (run / LAST_CHECKPOINT).exists()
        is_idle = not is_running
        return {
            "state": state,
            "error": error,
            "can_resume": can_resume,
            "can_use": can_resume and checkpoint.parent != run,
            "features": _computed_features(status) if is_running else None,
            "num_epochs": self._num_epochs(),
            "num_validation": self._num_validation(),
            "history": _history(run),
            "log": messages[-SHOWN_BYTES:],
            "has_network": checkpoint.exists(),
            "has_report": is_idle and (self.run_folder / REPORT_FILE).exists(),
            "has_results": is_idle and (self.run_folder / PREDICTIONS_FILE).exists(),
        }

    def results(self) -> dict:
        """Return the classes, and each validation clip's with the one that was predicted.

        Raises UserError if there are none yet. Clips that could not be read are left out.
        """
        path = self.run_folder / PREDICTIONS_FILE
        if not path.exists():
            raise UserError("there are no results yet; train to the end")
        with open(path, newline="", encoding="utf-8") as file:
            clips = [
                {"id": row["id"], "label": row["label"], "predicted": row["predicted"]}
                for row in csv.DictReader(file)
                if row["predicted"]
            ]
        names = {clip[key] for clip in clips for key in ("label", "predicted")}
        return {"classes": sorted(names, key=natural_key), "clips": clips}

    def _num_epochs(self) -> int | None:
        for path in (self.snapshot / CONFIG_FILE, self.config_path):
            with suppress(UserError):
                return load_config(path).num_epochs
        return None

    def _num_validation(self) -> int | None:
        path = self.snapshot / "validation.csv"
        return len(read_rows(path, with_labels=True)) if path.exists() else None


def _network(given: dict) -> dict:
    """Return the keys of the network: the page's, or what is given."""
    own = {key: given[key] for key in NETWORK_KEYS if key in given}
    return own if "model" in own else NETWORK


def _computed_features(status: Status | None) -> float | None:
    """Return which part of the features before the first epoch is computed; None: not these."""
    if status and status.state == COMPUTING:
        return status.step / max(1, status.num_steps or 0)
    return None


def _history(run_folder) -> list[dict]:
    """Return the rows of history.csv, with None for NaN and inf, which JSON lacks."""
    path = run_folder / HISTORY_FILE
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [
            {key: float(row[key]) for key in COLUMNS if row.get(key)}
            for row in csv.DictReader(file)
        ]
    return [
        {key: value if math.isfinite(value) else None for key, value in row.items()} for row in rows
    ]


def _write_json(path, values) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _state(is_running: bool, status: Status | None, messages: str, was_stopped: bool):
    """Return the state of a training, as the page shows it, and its error.

    status: that of the process, or None if it has not written one. messages: of its log.
    """
    if is_running:
        return "running", ""
    if not status or status.state == COMPUTING:  # it ended early, or was never started
        if was_stopped:
            return "stopped", ""
        return ("failed", messages.strip() or ENDED) if messages else ("none", "")
    if status.state in ("done", "stopped"):
        return status.state, ""
    return "failed", status.message or KILLED
