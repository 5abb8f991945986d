import numpy as np
import pytest

from clips.annotations import groups_of, read_annotations, read_labels
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
    [JESTER, WITH_HEADER, JESTER.replace("\n", "\r\n"), "\ufeff" + JESTER, "\n" + JESTER + "\n\n",
     JESTER.replace(";", " ; "), "\ufeff" + WITH_HEADER.replace("\n", "\r\n\r\n")],
    ids=["jester", "header", "windows", "bom", "blank lines", "spaces", "header, bom, windows"],
)  # fmt: skip
def test_layouts_and_line_ends(tmp_path, folder, text):
    annotations = read(tmp_path, folder, text)
    assert annotations.ids.tolist() == ["10", "2", "33"]
    assert annotations.labels.tolist() == [1, 0, 1]
    assert annotations.clip_path(1) == f"{folder}/2"


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


@pytest.mark.parametrize("text", ['"10;No gesture\n', '1\0;No gesture\n', '"1\n0";No gesture\n',
                                  'video_id,label\n"1\n0",No gesture\n'])
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


# --- groups ------------------------------------------------------------------------------------

WITH_GROUPS = "video_id,label,group\n10,Swiping Right,anna\n2,Swiping Left,{}\n33,No gesture,{}\n"


@pytest.mark.parametrize(("groups", "lines"), [
    (("", "bo"), "1 lines: 3"), ((" ", ""), "2 lines: 3, 4"), (('""', "bo"), "1 lines: 3")])
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
