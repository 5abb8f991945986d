"""The times and speeds of a run, as the page shows them."""

from statistics import median

from training.run_folder import run_seconds


def column(history: list[dict], name: str) -> list[float]:
    """Return a column of the history without its empty cells."""
    return [row[name] for row in history if name in row]


def times_of_starts(starts: list[dict]) -> list[float]:
    """Return the seconds of each start of a run that finished an epoch, if they are known."""
    return [seconds for start in starts if (seconds := run_seconds(start)) is not None]


def speed(history: list[dict], starts: list[dict]) -> list[tuple[str, str]]:
    """Return (name, value) of the section on speed.

    The time in steps is shown only beside the time of the run, of which it is a part.
    """
    found = []
    if speeds := column(history, "clips_per_second"):
        found.append(
            (
                "Training clips per second",
                f"{median(speeds):,.1f} (median over epochs; "
                f"{min(speeds):,.1f} to {max(speeds):,.1f})",
            )
        )
    seconds, times = column(history, "seconds"), times_of_starts(starts)
    if times:
        found.append(("Time of the run", f"{duration(sum(times))}, to its last epoch"))
    if times and seconds:
        found.append(
            (
                "Of this, in training steps",
                f"{duration(sum(seconds))} in {len(seconds)} epochs, "
                f"{duration(median(seconds))} per epoch (median); the rest is validation, saving "
                "and starting",
            )
        )
    if memory := column(history, "peak_memory_mib"):
        found.append(("Peak memory", f"{max(memory):,.0f} MiB"))
    if starts:
        found.append(("Starts of the run", str(len(starts))))
    return found


def duration(seconds: float) -> str:
    """Return seconds as text, in the unit that fits."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
