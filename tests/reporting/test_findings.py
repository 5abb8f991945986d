"""What the report says of baselines and of time, and when it claims nothing."""

import numpy as np
import pytest

from explaining.time_probe import ORDERS, TimeProbe, read_predictions, write_predictions
from reporting.findings import about_baselines, about_time, time_probe_section
from system.errors import UserError
from training.run_folder import TIME_PROBE_FILE

SCORES = {"val_top1": 80, "val_top1_low": 70, "val_top1_high": 88, "val_most_frequent_top1": 30}


def said(linear, **scores):
    return about_baselines(SCORES | {"val_linear_top1": linear} | scores)


def test_a_network_above_its_baselines():
    text = said(40, val_pictures_top1=60)
    assert "better than pictures without order" in text and "better than a linear model" in text
    assert "no better than naming" not in text
    assert "no better than naming" in said(40, val_pictures_top1=30)


def test_baselines_that_are_as_good_or_better():
    text = said(75, val_pictures_top1=89)
    assert "A linear model on small grey frames is as good, within the uncertainty" in text
    assert "Pictures without order are better than the network" in text
    assert "nothing shows that time matters" in text and "network is better" not in text


@pytest.mark.parametrize("row", [None, {}, {"val_top1": 50.0}, SCORES])
def test_without_baselines_nothing_is_said(row):
    assert about_baselines(row) == ""


def probe(num_clips=40, groups=None, num_classes=2, **predicted):
    """Clips of `left`, `right` and so on, classified rightly except in the orders given."""
    labels = np.arange(num_clips) % num_classes
    predicted = {order: predicted.get(order.replace(" ", "_"), labels) for order in ORDERS}
    return TimeProbe(
        ["left", "right", *map(str, range(num_classes - 2))], labels, predicted, groups
    )


OPPOSITE = 1 - np.arange(40) % 2
NOTHING = np.zeros(40, int)


def test_a_network_of_movement():
    result = probe(reversed=OPPOSITE, shuffled=NOTHING, frozen=NOTHING)
    text = " ".join(about_time(result, ORDERS))
    assert text.startswith("Time matters: with its frames reversed, the network loses 100.0 points")
    assert "One frame is not enough" in text and "100 % of left is taken for right" in text


def test_a_network_that_does_not_use_time():
    text = " ".join(about_time(probe(), ORDERS))
    assert "this network does not use time. One frame is enough for it" in text


def test_a_small_difference_is_not_claimed():
    shuffled = np.arange(40) % 2
    shuffled[:2] = 1 - shuffled[:2]
    text = " ".join(about_time(probe(shuffled=shuffled), ORDERS))
    assert "same, within the uncertainty: nothing shows" in text and "Time matters" not in text


def test_a_network_that_guesses_and_few_groups_claim_nothing():
    text = " ".join(about_time(probe(in_order=NOTHING, reversed=OPPOSITE), ORDERS))
    assert "not shown to be better than naming the most frequent class (50.0 %)" in text
    groups = (np.arange(200) % 4).astype(str)
    text = " ".join(about_time(probe(200, groups, 40), ORDERS))
    assert text == "No difference is claimed: 4 groups are too few."


def test_the_section_of_a_run(tmp_path):
    assert time_probe_section(tmp_path, {}) is None
    groups = (np.arange(40) % 20).astype(str)
    path = tmp_path / TIME_PROBE_FILE
    write_predictions(probe(groups=groups, reversed=OPPOSITE, frozen=NOTHING), path)
    found = read_predictions(path)
    assert found.groups.tolist() == groups.tolist() and found.accuracy("frozen") == 50
    rows = time_probe_section(tmp_path, {})["rows"]
    assert [name for name, _, _ in rows][-1] == "one frame, repeated"
    assert rows[0][1].startswith("100.0 % (") and rows[1][2].startswith("-100.0 (-100.0 to -")
    section = time_probe_section(tmp_path, {"subtract_background": True})
    assert len(section["rows"]) == 3 and "it would be black" in section["note"]
    assert "One frame" not in section["text"]
    path.write_text("label,in order\nleft,left\n")
    with pytest.raises(UserError, match=r"damaged .*; delete it"):
        read_predictions(path)
