"""What baselines and the time probe say about the clips, in sentences.

A difference is claimed only if its 95 % interval excludes 0.
"""

from pathlib import Path

from explaining.time_probe import TimeProbe, read_predictions
from scoring.evaluation import format_balanced
from scoring.results import SavedLogits
from training.run import split_columns
from training.run_folder import TIME_PROBE_FILE

ORDER_NAMES = {
    "in order": "in order",
    "reversed": "reversed",
    "shuffled": "shuffled",
    "frozen": "one frame, repeated",
}


def balanced_figure(saved: SavedLogits) -> tuple[str, str, str]:
    """Return name, value and remark of the balanced accuracy, for the top of the page."""
    contents = (saved.logits, saved.labels, saved.groups)
    value, _, interval = format_balanced(*contents).partition(" (")
    remark = "mean of the classes' accuracies"
    if interval.startswith("no"):
        remark += f"; {interval[:-1]}"
    elif interval:
        remark += f"; 95 % interval {interval[:-1]}"
    return "balanced accuracy", value, remark


def about_baselines(row: dict[str, float] | None) -> str:
    """Return what the baselines in the history's last row say; empty: it has none.

    They are compared with the interval of the network's top-1.
    """
    _, scores = split_columns(row or {})
    low, high = scores.get("top1_low"), scores.get("top1_high")
    linear, pictures = scores.get("linear_top1"), scores.get("pictures_top1")
    if low is None or high is None or linear is None:
        return ""
    words = []
    if linear >= low:
        words.append(
            f"A linear model on small grey frames is {_beside(linear, low, high)} the network: "
            "brightness at fixed places and moments tells these classes apart, so these clips say "
            "little about a network."
        )
    if pictures is not None and pictures >= low:
        words.append(
            f"Pictures without order are {_beside(pictures, low, high)} the network: what is "
            "seen in single frames tells these classes apart, and nothing shows that time matters "
            "on these clips."
        )
    elif pictures is not None:
        words.append(
            "The network is better than pictures without order, so it uses movement, or details "
            "that those features lack; the time probe tells whether it uses the order of frames."
        )
        if pictures <= scores.get("most_frequent_top1", -1):
            words.append(
                "Pictures without order are no better than naming the most frequent class: "
                "single frames hardly tell these classes apart."
            )
    if linear < low:
        words.append("The network is better than a linear model.")
    return " ".join(words)


def _beside(value, low, high) -> str:
    return "better than" if value > high else "as good, within the uncertainty, as"


def time_probe_section(folder: Path, config: dict) -> dict | None:
    """Return the variables of the section on time; None: the run has no time probe.

    config: of the run. Raises UserError if the probe's file is damaged.
    """
    result = read_predictions(folder / TIME_PROBE_FILE)
    if result is None:
        return None
    # Without the clip's mean frame, a repeated frame is black.
    is_black = bool(config.get("subtract_background"))
    orders = [order for order in ORDER_NAMES if not (is_black and order == "frozen")]
    rows = []
    for order in orders:
        difference = ""
        if order != "in order":
            loss = result.loss(order)
            difference = f"no interval: {loss.method}"
            if loss.low is not None:
                difference = f"{-loss.difference:+.1f} ({-loss.high:+.1f} to {-loss.low:+.1f})"
        accuracy = f"{result.accuracy(order):.1f} % ({result.interval(order)})"
        rows.append((ORDER_NAMES[order], accuracy, difference))
    return {
        "num_clips": len(result.labels),
        "rows": rows,
        "text": " ".join(about_time(result, orders)),
        "method": result.interval("in order").method,
        "note": "One frame is left out: without its background, it would be black."
        if is_black
        else "",
    }


def about_time(result: TimeProbe, orders) -> list[str]:
    """Return what a time probe says about the network, in sentences; orders: those to compare."""
    labels = result.labels.tolist()
    most_frequent = 100 * max(map(labels.count, set(labels))) / len(labels)
    if result.interval("in order").low <= most_frequent:
        return [
            "In order, the network is not shown to be better than naming the most frequent class "
            f"({most_frequent:.1f} %), so other orders say nothing about it."
        ]
    losses = {order: result.loss(order) for order in orders if order != "in order"}
    if any(loss.low is None for loss in losses.values()):
        return [f"No difference is claimed: {losses['reversed'].method}."]
    matters = {order: loss.low > 0 for order, loss in losses.items()}
    words = []
    if matters["shuffled"] or matters["reversed"]:
        order = max(("shuffled", "reversed"), key=lambda order: losses[order].low)
        loss = losses[order]
        words.append(
            f"Time matters: with its frames {order}, the network loses "
            f"{loss.difference:.1f} points ({loss.low:.1f} to {loss.high:.1f})."
        )
    elif all((result.predicted["in order"] == result.predicted[each]).all() for each in losses):
        words.append("Every clip is classified alike in any order: this network does not use time.")
    else:
        words.append(
            "In any order the score is the same, within the uncertainty: nothing shows that this "
            "network uses the order of the frames."
        )
    if "frozen" in losses:
        words.append(
            "One frame is not enough for it."
            if matters["frozen"]
            else "One frame is enough for it, within the uncertainty."
        )
    if matters["reversed"]:
        words += [
            f"Reversed, {percent:.0f} % of {name} is taken for {other}."
            for name, other, percent in result.swapped()
        ]
    return words
