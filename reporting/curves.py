"""The TensorBoard log of a run: curves, the input, the config and the confusion matrix."""

from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from clips.batches import ClipKey
from clips.frames import FrameError
from config import Config
from reporting.confusion_matrix import draw_confusion_matrix
from scoring.evaluation import confusion_matrix
from system import processes
from training.callback import Callback
from training.run import split_columns
from training.run_folder import LOG_FOLDER

FAILED = (
    "note: the TensorBoard log can no longer be written, for example because the disk was "
    "full; history.csv has the curves, and --resume rewrites them"
)


class TensorBoardLog:
    """Two writers, `train` and `validation`, in separate folders, so that they share charts."""

    def __init__(self, folder: Path):
        """Start a new log; keep other files in its folder."""
        self.writers = {}
        for name in ("train", "validation"):
            for path in (folder / name).glob("events.*"):
                path.unlink()
            self.writers[name] = SummaryWriter(str(folder / name))

    def add_config(self, config: Config) -> None:
        """Add the config, for TensorBoard's HParams, with the loss and top-1 accuracy."""
        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in config.model_dump().items()
        }
        for summary in hparams(values, {"loss": 0.0, "top1": 0.0}):
            self.writers["validation"].file_writer.add_summary(summary)

    def add_input(self, data_set) -> None:
        """Add the frames of the first training clip side by side, as the network sees them."""
        try:
            clip, _ = data_set[ClipKey(0, 0)]
        except FrameError:
            return
        strip = np.concatenate(list(clip[0, ..., :3]), axis=1)  # uint8 [H, T * W, 3]
        self.writers["train"].add_image("input", strip, 0, dataformats="HWC")

    def add_row(self, row: dict) -> None:
        """Add one row of the history to the curves."""
        if not self.can_write():
            return
        training, validation = split_columns(row)
        epoch = training.pop("epoch")
        for writer, values in (("train", training), ("validation", validation)):
            for name, value in values.items():
                self.writers[writer].add_scalar(name, value, epoch)

    def can_write(self) -> bool:
        """Return False, and print a note once, if a writer's thread has died.

        It ends at an error, and further calls would wait forever.
        """
        logs = [writer.file_writer.event_writer for writer in self.writers.values()]
        threads = [log._worker for log in logs if hasattr(log, "_worker")]  # not part of the API
        if not all(thread.is_alive() for thread in threads):
            print(FAILED, flush=True)
            self.writers = {}
        return bool(self.writers)

    def add_confusion_matrix(self, matrix, class_names, epoch: int) -> None:
        """Add the matrix as a picture; matrix: int [classes, classes]."""
        if self.can_write():
            picture = draw_confusion_matrix(matrix, class_names)
            self.writers["validation"].add_image(
                "confusion_matrix", picture, epoch, dataformats="HWC"
            )

    def flush(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class TensorBoard(Callback):
    """Write curves and pictures, in the main process.

    They follow the history: each start of a run rewrites its curves, so that no epoch is missing
    or duplicated.
    """

    def __init__(self):
        self.log, self.evaluated = None, None

    def on_start(self, run, train_loader, validation_loader):
        if processes.is_main():
            self.log = TensorBoardLog(run.config.run_folder / LOG_FOLDER)
            self.log.add_config(run.config)
            self.log.add_input(train_loader.dataset)
            for row in run.state.history:
                self.log.add_row(row)

    def on_validation_end(self, run, logits, labels):
        self.evaluated = logits, labels
        if run.is_over:  # it died after its last checkpoint
            self.add_matrix(run)

    def on_epoch_end(self, run, is_best):
        if self.log:
            self.log.add_row(run.state.history[-1])
            if run.is_over:
                self.add_matrix(run)
            self.log.flush()

    def add_matrix(self, run):
        """Add the confusion matrix of the last validation.

        It is written before history.csv is complete: after that, a resumed run adds nothing.
        """
        if self.log and self.evaluated:
            matrix = confusion_matrix(*self.evaluated)
            self.log.add_confusion_matrix(matrix, run.class_names, run.state.epoch)
            self.log.flush()

    def close(self, run):
        if not run.is_over:  # it was stopped before its last epoch
            self.add_matrix(run)
        if self.log:
            self.log.close()
