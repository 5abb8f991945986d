import unicodedata

import numpy as np
import pytest
from conftest import draw_frames, make_config, write_clip
from tqdm import tqdm

from clips.annotations import groups_of, read_annotations, read_labels
from clips.frames import list_frames
from clips.packing import Packing, pack
from clips.reading import mirrored_labels
from system.errors import UserError

NAMES = ["Swiping Left", "Swiping Right", "No gesture"]


@pytest.fixture
def folder(tmp_path):
    for clip_id in ("1", "2", "10", "33"):
        (tmp_path / "clips" / clip_id).mkdir(parents=True)
    return tmp_path / "clips"


def read(tmp_path, folder, text, class_names=NAMES):
    (tmp_path / "set.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(tmp_path / "set.csv", folder, class_names)


JESTER = "10;Swiping Right\n2;Swiping Left\n33;Swiping Right\n"
WITH_HEADER = (
    "video_id,label,frames,label_id,shape,format\n"
    '10,Swiping Right,37,5,"(100, 176)",jpg\n2,Swiping Left,36,4,x,jpg\n33,Swiping Right,1,5,x,j\n'
)


@pytest.mark.parametrize(
    "text",
    [
        JESTER,
        WITH_HEADER,
        JESTER.replace("\n", "\r\n"),
        "\ufeff" + JESTER,
        "\n" + JESTER + "\n\n",
        JESTER.replace(";", " ; "),
        "\ufeff" + WITH_HEADER.replace("\n", "\r\n\r\n"),
    ],
    ids=["jester", "header", "windows", "bom", "blank lines", "spaces", "header, bom, windows"],
)
def test_layouts_and_line_ends(tmp_path, folder, text):
    annotations = read(tmp_path, folder, text)
    assert annotations.ids.tolist() == ["10", "2", "33"]
    assert annotations.labels.tolist() == [1, 0, 1]
    assert str(annotations.clip(1)) == f"{folder}/2"


def test_rows_with_other_labels_are_left_out_and_counted(tmp_path, folder):
    annotations = read(tmp_path, folder, JESTER + "7;Drumming\n8;Drumming\n")
    assert len(annotations) == 3 and annotations.num_dropped == 2


@pytest.mark.parametrize("text", ["10\n2\n", "video_id\n10\n2\n", "10;Swiping Left\n2;\n"])
def test_test_sets_have_no_labels(tmp_path, folder, text):
    annotations = read(tmp_path, folder, text, class_names=None)
    assert annotations.ids.tolist() == ["10", "2"] and (annotations.labels == -1).all()


def test_ids_and_labels_are_text(tmp_path, folder):
    """Also where they look like numbers or missing values."""
    for clip_id in ("00012", "NA", "1e3"):
        (folder / clip_id).mkdir()
    names = ["NA", "null", "1.0"]
    annotations = read(tmp_path, folder, "00012;NA\nNA;null\n1e3;1.0\n", names)
    assert annotations.ids.tolist() == ["00012", "NA", "1e3"]
    assert annotations.labels.tolist() == [0, 1, 2]


def test_columns_in_another_order_and_quoted_fields(tmp_path, folder):
    text = 'label,frames,video_id\nNo gesture,3,10\n"No gesture","1,2","2"\n\nelse,,\n'
    annotations = read(tmp_path, folder, text.replace("else,,", "else,,33"))
    assert annotations.ids.tolist() == ["10", "2"] and annotations.num_dropped == 1
    annotations = read(tmp_path, folder, '"video_id","label"\n"10","No gesture"\n')  # as R writes
    assert annotations.ids.tolist() == ["10"] and annotations.num_dropped == 0


@pytest.mark.parametrize(
    "text",
    [
        '"10;No gesture\n',
        "1\0;No gesture\n",
        '"1\n0";No gesture\n',
        'video_id,label\n"1\n0",No gesture\n',
    ],
)
def test_what_is_not_one_row_per_line_is_refused(tmp_path, folder, text):
    with pytest.raises(UserError, match=r"set\.csv: (not a CSV file|line \d: )"):
        read(tmp_path, folder, text)


def test_lines_without_a_label(tmp_path, folder):
    """An empty label is left out as any unknown one; without its separator, the line is wrong."""
    assert read(tmp_path, folder, JESTER + "1;\n").num_dropped == 1
    with pytest.raises(UserError, match="line 4: expected id;label, found '1'"):
        read(tmp_path, folder, JESTER + "1\n")


def test_missing_folders_are_counted_and_the_first_ten_named(tmp_path, folder):
    rows = "".join(f"{number};No gesture\n" for number in range(1, 16))
    with pytest.raises(UserError, match=r"12 of 15 clips have no folder .*: 3, 4, .*13 and 2 more"):
        read(tmp_path, folder, rows)


def test_labels(tmp_path):
    (tmp_path / "labels.csv").write_bytes("\ufeffA b\r\nC\r\n\r\n".encode())
    assert read_labels(tmp_path / "labels.csv") == ["A b", "C"]


def test_a_hundred_thousand_rows_are_two_arrays(tmp_path, folder):
    rows = "".join(f"{number};No gesture\n" for number in range(100_000, 200_000))
    (tmp_path / "set.csv").write_text(rows)
    with pytest.raises(UserError, match="100,000 of 100,000 clips"):
        read_annotations(tmp_path / "set.csv", folder, NAMES)
    annotations = read(tmp_path, folder, JESTER)
    assert annotations.ids.dtype.kind == "U" and annotations.labels.dtype == np.int64


# --- names with accents --------------------------------------------------------------------------


def apart(name) -> str:
    return unicodedata.normalize("NFD", name)


ID, LABELS = "Zoë/café_1", ["Hände hoch", "Naïf"]


@pytest.mark.parametrize("on_disk", [ID, apart(ID), f"{apart('Zoë')}/café_1"])
@pytest.mark.parametrize("in_csv", [ID, apart(ID)])
@pytest.mark.parametrize("is_packed", [False, True])
def test_names_are_the_same_with_accents_composed_or_apart(tmp_path, on_disk, in_csv, is_packed):
    assert apart(ID) != ID
    folder = tmp_path / "clips"
    write_clip(folder / on_disk, draw_frames("Left", 3, np.random.default_rng(0)))
    write_clip(folder / "plain", draw_frames("Left", 3, np.random.default_rng(0)))
    if is_packed:
        folder = pack(tmp_path / "clips.zip", [folder], Packing(), tqdm)
    (tmp_path / "labels.csv").write_text("\n".join(map(apart, LABELS)), encoding="utf-8")
    names = read_labels(tmp_path / "labels.csv")
    assert names == LABELS
    for label in (LABELS[1], apart(LABELS[1])):
        annotations = read(tmp_path, folder, f"{in_csv};{label}\nplain;{LABELS[0]}\n", names)
        assert annotations.labels.tolist() == [1, 0] and annotations.ids[0] == in_csv
        assert len(annotations.clip(0).open(make_config())) == 3


def test_one_clip_with_accents_composed_and_apart_is_listed_twice(tmp_path):
    write_clip(tmp_path / "clips" / ID, draw_frames("Left", 3, np.random.default_rng(0)))
    with pytest.raises(UserError, match=r"1 clips are listed more than once, with their accents"):
        read(tmp_path, tmp_path / "clips", f"{ID};No gesture\n{apart(ID)};No gesture\n")


def test_two_folders_whose_names_look_alike_are_two_clips(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate((ID, apart(ID)), 2):
        write_clip(tmp_path / "clips" / name, draw_frames("Left", number, rng))
    found = read(tmp_path, tmp_path / "clips", f"{apart(ID)};No gesture\n{ID};No gesture\n")
    assert [len(list_frames(found.clip(place))) for place in (0, 1)] == [3, 2]


def test_groups_and_mirrored_classes_are_found_with_accents_either_way(tmp_path):
    write_clip(tmp_path / "clips" / "1", draw_frames("Left", 3, np.random.default_rng(0)))
    text = f"video_id,label,group\n1,{apart(LABELS[0])},{apart('Zoë')}\n"
    assert read(tmp_path, tmp_path / "clips", text, LABELS).groups.tolist() == ["Zoë"]
    assert groups_of([apart("zoë_1"), "zoë_2"], apart("^(zoë)_")).tolist() == ["zoë", "zoë"]
    annotations = read(tmp_path, tmp_path / "clips", text, LABELS)
    config = make_config(horizontal_flip=0.5, flip_labels={apart(LABELS[0]): LABELS[1]})
    assert mirrored_labels(annotations, config).tolist() == [1, 0]


# --- groups ------------------------------------------------------------------------------------

WITH_GROUPS = "video_id,label,group\n10,Swiping Right,anna\n2,Swiping Left,{}\n33,No gesture,{}\n"


@pytest.mark.parametrize(
    ("groups", "lines"),
    [(("", "bo"), "1 lines: 3"), ((" ", ""), "2 lines: 3, 4"), (('""', "bo"), "1 lines: 3")],
)
def test_clips_without_a_group_are_not_one_group(tmp_path, folder, groups, lines):
    with pytest.raises(UserError, match=f"no group in {lines}; fill in the column `group`"):
        read(tmp_path, folder, WITH_GROUPS.format(*groups))


def test_a_group_is_needed_only_where_it_is_used(tmp_path, folder):
    text = WITH_GROUPS.format("", "bo")
    assert read(tmp_path, folder, text, class_names=None).groups is None  # a test set
    found = read_annotations(tmp_path / "set.csv", folder, NAMES, with_groups=False)
    assert found.groups is None and len(found) == 3
    # A row that is left out needs none.
    found = read(tmp_path, folder, text.replace("Swiping Left", "Drumming"))
    assert found.groups.tolist() == ["anna", "bo"]


def test_a_pattern_that_finds_an_empty_name_finds_no_group():
    assert groups_of(["a_1", "b_2"], "^([a-z]*)_").tolist() == ["a", "b"]
    with pytest.raises(UserError, match="finds no group in 1 of 2 clips: _2"):
        groups_of(["a_1", "_2"], "^([a-z]*)_")
