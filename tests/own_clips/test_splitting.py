"""Groups, duplicates, and the split into training and validation."""

from collections import Counter

import numpy as np
import pytest
from conftest import draw_frames, write_clip
from own_folders import do_train, write_class_folders

from clips.annotations import read_annotations, read_labels
from clips.packs import open_folder
from own_clips.splitting import choose_validation, groups_of_clips, joined, likely_rule
from system.errors import UserError


def test_a_split_is_stratified_seeded_and_keeps_groups_together():
    labels = [label for label in "abc" for _ in range(20)]
    groups = [f"person {number % 10}" for number in range(60)]
    is_validation = choose_validation(labels, groups, seed=3)
    assert Counter(np.array(labels)[is_validation]) == {"a": 4, "b": 4, "c": 4}
    sides = [set(np.array(groups)[mask]) for mask in (is_validation, ~is_validation)]
    assert not sides[0] & sides[1]
    assert (choose_validation(labels, groups, seed=3) == is_validation).all()
    others = [choose_validation(labels, groups, seed) for seed in range(3)]
    assert any((other != is_validation).any() for other in others)


def test_classes_with_few_clips_keep_some_for_training():
    labels = ["a"] * 20 + ["b"] * 3 + ["c"]
    for seed in range(5):
        is_validation = choose_validation(labels, [str(number) for number in range(24)], seed)
        assert {"a", "b", "c"} == set(np.array(labels)[~is_validation])
    assert choose_validation(["a", "a", "b", "b"], list("wxyz"), 0).sum() == 2


def test_many_classes_of_one_clip_are_for_training():
    labels = ["a"] * 40 + ["b"] * 20 + [f"single {number}" for number in range(9)]
    is_validation = choose_validation(labels, [str(number) for number in range(69)], 0)
    assert Counter(np.array(labels)[is_validation]) == {"a": 8, "b": 4}


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        (["a", "b"], ["1", "2"]),  # a class would have no clip for training
        (["a"] * 5 + ["b"] * 5, ["1"] * 5 + ["2"] * 5),  # each group is a class
        (
            [str(number // 2) for number in range(400)],  # each class is one clip, twice
            [str(number // 2) for number in range(400)],
        ),
    ],
)
def test_a_split_that_empties_a_class_is_refused(labels, groups):
    with pytest.raises(UserError, match="no split leaves clips of each class"):
        choose_validation(labels, groups, 0)


def test_many_small_groups_are_split_like_their_first_clips():
    groups = [str(number // 2 if number < 20 else number) for number in range(1000)]
    is_validation = choose_validation([str(number % 4) for number in range(1000)], groups, 0)
    assert (is_validation[:20:2] == is_validation[1:20:2]).all()
    assert 195 <= is_validation.sum() <= 205


def test_duplicates_are_joined(tmp_path):
    rng = np.random.default_rng(0)
    frames = draw_frames("Left", 3, rng)
    for name in ("a", "b", "c"):
        write_clip(tmp_path / name, frames if name != "b" else draw_frames("Left", 3, rng))
    for name, data in (("1.mp4", b"one"), ("2.mp4", b"two"), ("3.mp4", b"one")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "a" / ".DS_Store").write_bytes(b"hidden")
    same = open_folder(tmp_path).duplicates(["a", "1.mp4", "b", "2.mp4", "c", "3.mp4"])
    assert same == [[0, 4], [1, 5]]
    assert joined(["p", "q", "r", "s", "t", "p"], same) == ["q", "q", "r", "s", "q", "q"]


def test_duplicates_in_two_sets_are_a_warning(tmp_path, capfd):
    root = tmp_path / "clips"
    for part in ("train", "val"):
        write_class_folders(root / part, num_clips=3)
    assert do_train(root, tmp_path, "--check_data") == 2  # an error there
    output = capfd.readouterr().out
    assert "exact duplicates: 18 clips" in output and "kept on one side" not in output
    assert "warning: the same clip is in two sets" in output
    assert "train/Left/anna_0, val/Left/anna_0 and 8 more; remove one of each" in output


IDS = ["wave/anna_1.mp4", "wave/bo_2.mp4", "clap/anna_3.mp4"]


def test_a_table_of_groups_is_written_into_the_csvs(tmp_path):
    root = write_class_folders(tmp_path / "clips")
    rows = [f"{path.name},{path.name[:4]}" for path in root.glob("*/*")]
    (tmp_path / "people.csv").write_text("\n".join(["video_id,who", *dict.fromkeys(rows)]))
    assert do_train(root, tmp_path, "--group", f"{tmp_path / 'people.csv'}:who") == 0
    folder = tmp_path / "runs" / "clips"
    names = read_labels(folder / "labels.csv")
    groups = [
        set(read_annotations(folder / f"{name}.csv", root, names).groups)
        for name in ("train", "validation")
    ]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


def test_groups_come_from_names_folders_and_tables(tmp_path):
    assert groups_of_clips(IDS, "^([a-z]+)_") == ["anna", "bo", "anna"]
    assert groups_of_clips(["wave/anna/1.mp4", "clap/bo/x/2.mp4"], "folder") == ["anna", "x"]
    table = tmp_path / "people.csv"
    table.write_text("video_id,person\nanna_1.mp4,A\nbo_2.mp4,B\nclap/anna_3.mp4,007\n")
    assert groups_of_clips(IDS, f"{table}:person") == ["A", "B", "007"]
    table.write_text("video_id, person\nanna_1.mp4, A \nbo_2.mp4,B\nbo_2.mp4,B\nanna_3.mp4,A\n")
    assert groups_of_clips(IDS, f"{table}:person") == ["A", "B", "A"]
    table.write_text("video_id,person\nanna_1.mp4,A\nbo_2.mp4,B\nanna_3.mp4,C\nbo_2.mp4,D\n")
    with pytest.raises(UserError, match=r"has two groups for bo_2\.mp4; correct it"):
        groups_of_clips(IDS, f"{table}:person")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("^([0-9]+)_", "finds no group in 3 of 3 clips: wave/anna_1.mp4"),
        ("^(anna)_", "finds no group in 1 of 3 clips: wave/bo_2.mp4"),
        ("(_)", "all clips are in one group"),
        ("(", "not a regular expression"),
        ("^[a-z]+_", "put the part that names the group in brackets"),
        ("folder", "finds no group in 3 of 3"),
        ("none.csv:person", "cannot be read"),
    ],
)
def test_a_rule_for_groups_that_does_not_fit_is_refused(rule, message):
    with pytest.raises(UserError, match="group") as error:
        groups_of_clips(IDS, rule)
    assert message in str(error.value)


def test_a_rule_is_suggested_where_names_look_like_it():
    ids = [f"{label}/{person}_{label}.mp4" for person in ("anna", "bo") for label in "abcd"]
    rule = likely_rule(ids, [clip_id[0] for clip_id in ids])
    assert groups_of_clips(ids, rule) == ["anna"] * 4 + ["bo"] * 4
    assert (
        likely_rule([f"{label}/{n}.mp4" for label in "ab" for n in range(9)], list("ab" * 9))
        is None
    )
