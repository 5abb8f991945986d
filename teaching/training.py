"""Training for the page: `train.py` as a separate process, whose files the page shows."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from clips.packs import open_folder
from own_clips.settings import choose_settings, class_balance
from own_clips.survey import survey
from system.config_file import load_config
from system.errors import UserError, summarize
from system.files import try_lock, write_text
from teaching.data_set import DataSet
from training.run_folder import CONFIG_FILE, HISTORY_FILE, LAST_CHECKPOINT, REPORT_FILE, STATUS_FILE
from training.status import Status, read_status

PROJECT = Path(__file__).parent.parent
RECIPE = PROJECT / "configs" / "few_clips.json"
MIN_CLASSES, MIN_CLIPS = 2, 5  # per class
SHOWN_BYTES = 4000  # of the log
ENDED = "the training ended without a message"
KILLED = f"{ENDED}; it may have been killed, for example because memory was short: see the log"
COLUMNS = ("epoch", "seconds", "top1", "val_top1", "val_linear_top1", "val_most_frequent_top1")


class Training:
    """The training of a data set, which may have been started by an earlier teach.py."""

    def __init__(self, data_set: DataSet, device_type: str, gpus: str | None):
        """Read the newest status; gpus: the flag -g."""
        self.data_set, self.device_type, self.gpus = data_set, device_type, gpus
        self.config_path, self.log = data_set.folder / CONFIG_FILE, data_set.folder / "training.log"
        name = data_set.folder.name or "clips"
        with suppress(UserError):  # there is none yet; or the folder was renamed
            name = load_config(self.config_path).model_name
        self.run_folder = data_set.folder / "trainings" / name
        self.lock, self.process, self.is_stopping = threading.Lock(), None, False

    def start(self, is_resumed: bool) -> None:
        """Start a training, or resume the stopped one. Raises UserError if that is not possible.

        Its messages go to the log. `close` ends the process.
        """
        with self.lock, open(self.log, "ab") as log:
            if not try_lock(log.fileno()):
                raise UserError("a training is already running")
            if not is_resumed:
                self._check_clips()
                self.data_set.balance()
            self.write_config(anew=not is_resumed)
            self.is_stopping = False
            log.truncate(0)
            (self.run_folder / STATUS_FILE).unlink(missing_ok=True)
            command = [
                sys.executable,
                str(PROJECT / "train.py"),
                "--config",
                str(self.config_path),
                "--resume" if is_resumed else "--overwrite",
                "True",
            ]
            # The process and its children keep the log locked while they run.
            self.process = subprocess.Popen(
                command + (["-g", self.gpus] if self.gpus else []),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

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
        folder, (labels, sets) = (
            self.data_set.folder,
            zip(*self.data_set.clips.values(), strict=True),
        )
        recipe = load_config(RECIPE)
        values = recipe.model_dump(exclude_unset=True) if anew else {}
        if self.config_path.exists():
            values |= load_config(self.config_path).model_dump(exclude_unset=True)
        values |= {
            "model_name": self.run_folder.name,
            "output_dir": str(self.run_folder.parent),
            "labels_csv": str(folder / "labels.csv"),
        }
        for set_name, prefix in (("train", "train"), ("validation", "val")):
            values[f"{prefix}_data_folder"] = str(folder / "clips")
            values[f"{prefix}_data_csv"] = str(self.data_set.csvs[set_name])
        if anew:
            stats = survey(open_folder(folder / "clips"), list(self.data_set.clips), recipe, labels)
            own = [label for label, part in zip(labels, sets, strict=True) if part == "train"]
            choices = choose_settings(stats, len(own), self.device_type)
            for choice in choices + class_balance(own):
                values[choice.key] = choice.value
        write_text(self.config_path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def stop(self) -> None:
        """Ask the process to save and exit, like Ctrl-C in a terminal."""
        with self.lock:
            if not self._is_running():
                return
            if self.process and self.process.poll() is None:
                number = self.process.pid
            elif status := read_status(self.run_folder):  # started by an earlier teach.py
                number = status.process_id
            else:
                return
            self.is_stopping = True
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)

    def close(self) -> None:
        """Stop the process, and wait until it has saved."""
        self.stop()
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
        status, messages = read_status(self.run_folder), self._messages()
        state, error = _state(is_running, status, messages, self.is_stopping)
        has_network = (self.run_folder / LAST_CHECKPOINT).exists()
        return {
            "state": state,
            "error": error,
            "can_resume": state in ("stopped", "failed") and has_network,
            "num_epochs": self._num_epochs(),
            "history": self._history(),
            "log": messages[-SHOWN_BYTES:],
            "has_network": has_network,
            "has_report": not is_running and (self.run_folder / REPORT_FILE).exists(),
        }

    def _num_epochs(self) -> int | None:
        with suppress(UserError):
            return load_config(self.config_path).num_epochs
        return None

    def _history(self) -> list[dict]:
        """Return the rows of history.csv, with None for NaN and inf, which JSON lacks."""
        path = self.run_folder / HISTORY_FILE
        if not path.exists():
            return []
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {key: float(row[key]) for key in COLUMNS if row.get(key)}
                for row in csv.DictReader(file)
            ]
        return [
            {key: value if math.isfinite(value) else None for key, value in row.items()}
            for row in rows
        ]


def _state(is_running: bool, status: Status | None, messages: str, was_stopped: bool):
    """Return the state of a training, as the page shows it, and its error.

    status: that of the process, or None if it has not written one. messages: of its log.
    """
    if is_running:
        return "running", ""
    if not status:  # it ended before it made its run folder, or was never started
        if was_stopped:
            return "stopped", ""
        return ("failed", messages.strip() or ENDED) if messages else ("none", "")
    if status.state in ("done", "stopped"):
        return status.state, ""
    return "failed", status.message or KILLED
