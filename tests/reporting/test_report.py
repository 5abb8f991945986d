"""The report: its content, and that it is safe and self-contained, also in a browser."""

import base64
import io
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import browse, look_at, needs_chromium
from conftest import CLASSES, draw_frames, make_config
from movies import write_video
from PIL import Image
from runs import make_settings, read_csv, run_folder, write_config

import callbacks
import train
from clips.folders import clip_at
from report import main
from reporting import confusion_matrix
from reporting import page as report_page
from reporting.line_chart import line_chart
from reporting.page import write_report
from reporting.worst_clips import MAX_BYTES, input_frames, moving_picture
from scoring import results
from system.errors import UserError

NAMES = [
    "Left <script>document.title='taken'</script>",
    "Right \"&' onload=alert(1)",
    "التمرير 👍🏽",
]
NASTY_ID = "<img src=x onerror=document.title='taken'> & 'so on'"
VIDEO_ID = "wave.mp4"
# Elements that are never closed.
VOID = {"meta", "link", "img", "source"}


class Page(HTMLParser):
    """The elements and the text of a page, read strictly: what is opened must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.title = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))
        if self.open[-1:] == ["title"] and "svg" not in self.open:
            self.title += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def headings(self):
        return [text for tag, text in self.texts if tag == "h2"]

    def section(self, heading) -> str:
        """The text from a heading to the next one."""
        start = self.texts.index(("h2", heading)) + 1
        rest = [("h2", None) if tag == "h2" else (tag, text) for tag, text in self.texts[start:]]
        return " ".join(text for _, text in rest[: ([*rest, ("h2", None)]).index(("h2", None))])

    @property
    def commands(self):
        return [
            shlex.split(text)
            for tag, text in self.texts
            if tag == "code" and text.startswith("python ")
        ]


def page_of(folder) -> Page:
    return Page((Path(folder) / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with hostile names, a video file and a damaged clip, and its pages after each step."""
    root = tmp_path_factory.mktemp("report")
    settings = make_settings(root, on_bad_clip="skip", max_bad_share=0.5, checkpoint_minutes=10)
    clips, csv_path = Path(settings["val_data_folder"]), Path(settings["val_data_csv"])
    write_video(clips / VIDEO_ID, draw_frames("Still", 12, np.random.default_rng(0)))
    (clips / "24").rename(clips / NASTY_ID)
    for path in (clips / "25").iterdir():
        path.write_bytes(b"")
    rows = csv_path.read_text().replace("23;", f"{VIDEO_ID};").replace("24;", f"{NASTY_ID};")
    for path, text in (
        (csv_path, rows),
        (Path(settings["train_data_csv"]), None),
        (Path(settings["labels_csv"]), None),
    ):
        text = text or path.read_text()
        for plain, name in zip(CLASSES, NAMES, strict=True):
            text = text.replace(plain, name)
        path.write_text(text, encoding="utf-8")
    assert train.main(["-c", write_config(root / "config.json", settings), "-g", "cpu"]) == 0
    folder = run_folder(settings)
    after_training = page_of(folder)
    (folder / "logits.npz").unlink()
    write_report(folder)
    without = page_of(folder)
    (command,) = without.commands
    assert train.main([*command[2:], "-g", "cpu"]) == 0  # as the page tells its reader
    return SimpleNamespace(
        folder=folder,
        settings=settings,
        after_training=after_training,
        without=without,
        page=page_of(folder),
    )


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run folder, for a test to change; a name that is JSON, too."""
    return Path(shutil.copytree(trained.folder, tmp_path / "7"))


def set_logits(folder, likes, config=None, number=1, **changes):
    """Logits that like class `likes` best for every clip but the damaged one.

    config: keys that change; number: of networks; changes: in what is known of their weights.
    """
    saved = results.read_logits(folder / "logits.npz")
    known = ~saved.logits.isnan()
    saved.logits[:] = torch.where(known, 0.0, torch.nan)
    saved.logits[:, likes] += torch.arange(1.0, len(saved.ids) + 1)  # the last is the surest
    network = saved.origin.networks[0].model_copy(update=changes)
    config = saved.origin.config | (config or {})
    origin = results.Origin(networks=[network] * number, config=config)
    annotations = SimpleNamespace(ids=np.array(saved.ids), labels=saved.labels.numpy(), groups=None)
    results.write_logits(folder / "logits.npz", annotations, saved.logits, saved.classes, origin)
    return results.read_logits(folder / "logits.npz")


# --- content -----------------------------------------------------------------------------------


def test_after_training(trained):
    """The last epoch is shown as by --eval_only, without what could not be read."""
    page = trained.after_training
    assert page.headings == trained.page.headings and "What is missing" not in page.headings
    text = page.section("Evaluation")
    assert f"the weights of epoch 2 ({trained.folder / 'checkpoint.pth.tar'})" in text
    assert "1 of 7 clips could not be read and are not counted: 25" in text
    last = read_csv(trained.folder / "history.csv")[-1]
    assert f"top-1 {float(last['val_top1']):.2f} %" in text
    for each in (page, trained.page):
        figures = " ".join(text for _, text in each.texts)
        assert "6 clips (1 could not be read); 95 % interval" in figures


def test_without_an_evaluation(trained):
    page = trained.without
    assert page.headings == ["What is missing", "Curves", "Speed", "Settings"]
    assert page.title == "tiny"
    assert "has not been evaluated" in page.section("What is missing")
    history = read_csv(trained.folder / "history.csv")
    labels = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    assert labels[0] == "Loss by epoch: " + "; ".join(
        f"{name} {float(history[0][column]):.4g} in epoch 1, {float(history[1][column]):.4g} in "
        "epoch 2"
        for name, column in (("training", "loss"), ("validation", "val_loss"))
    )
    assert [label.split(" by ")[0] for label in labels] == [
        "Loss",
        "Top-1 accuracy",
        "Learning rate",
        "Training clips per second",
    ]
    assert "in 2 epochs" in page.section("Speed")
    assert "1 x CPU, training in fp32" in page.section("Speed")
    assert f"{float(history[0]['peak_memory_mib']):,.0f} MiB" in page.section(
        "Speed"
    ) or f"{float(history[1]['peak_memory_mib']):,.0f} MiB" in page.section("Speed")
    set_here, at_default = page.section("Settings").split("keys at their defaults")
    assert "batch_size 8 100 Clips per training step" in set_here and "dropout" not in set_here
    assert "dropout 0.15 0.15 Fraction" in at_default


def test_the_time_of_the_run_is_that_of_its_starts(folder):
    def times():
        texts = [text for _, text in Page(write_report(folder).read_text()).texts]
        return texts[texts.index("time of the run") + 1 :][:2] if "time of the run" in texts else []

    (start,) = json.loads((folder / "versions.json").read_text())
    assert start["started"] <= start["last_epoch"] and times()[1] == "to its last epoch"
    start |= {"started": "2026-01-31 23:00:00", "last_epoch": "2026-02-01 01:05:00"}
    starts = [start, start | {"last_epoch": "2026-01-31 23:10:00"}]
    for more in ([], [{"started": "2026-02-02 00:00:00"}, {"started": 1, "last_epoch": None}]):
        (folder / "versions.json").write_text(json.dumps([*starts, *more]))
        assert times() == ["2 h 15 min", "to its last epoch, in 2 starts"]
    (folder / "versions.json").write_text("[{}]")
    assert times() == []


def test_time_in_steps_is_only_shown_beside_the_time_of_the_run(folder):
    text = Page(write_report(folder).read_text()).section("Speed")
    assert text.index("Time of the run") < text.index("Of this, in training steps")
    (folder / "versions.json").write_text("[{}]")
    text = Page(write_report(folder).read_text()).section("Speed")
    assert "Time of the run" not in text and "steps" not in text and "Peak memory" in text


def test_no_line_ends_within_top_1(trained):
    texts = [text for tag, text in trained.page.texts if tag == "span"]
    assert texts.count("top-1") >= 3 and "Top-1" in texts
    assert report_page.unbroken("<top-5>") == '&lt;<span class="unbroken">top-5</span>&gt;'


def test_after_evaluation(trained):
    page, rows = trained.page, read_csv(trained.folder / "predictions.csv")
    assert page.headings == [
        "Curves",
        "Evaluation",
        "Confusion matrix",
        "Misclassified clips",
        "Speed",
        "Settings",
    ]
    known = [row for row in rows if row["predicted"]]
    wrong = [row for row in known if row["label"] != row["predicted"]]
    text = page.section("Evaluation")
    assert len(known) == 6 and f"{100 - 100 * len(wrong) / 6:.2f} %" in text
    assert "1 of 7 clips could not be read and are not counted: 25" in text
    top1 = [float(row["val_top1"]) for row in read_csv(trained.folder / "history.csv")]
    best = top1.index(max(top1)) + 1
    assert f"the weights of epoch {best} (" in text and "To evaluate" not in text
    assert ("This is the best epoch; the last one is 2." in text) == (best == 1)
    for name in NAMES:
        of_class = [row for row in known if row["label"] == name]
        right = sum(row["predicted"] == name for row in of_class)
        shown = f"{name} {100 * right / len(of_class):.1f} % ({right} of {len(of_class)})"
        assert shown in text, (shown, text)
    cells = [tag["title"] for tag in page.all("td") if "title" in tag]
    assert sorted(cells) == sorted(
        f"{sum((row['label'], row['predicted']) == pair for row in known)} of {pair[0]} as "
        f"{pair[1]}"
        for pair in {(row["label"], row["predicted"]) for row in known}
    )
    assert len(page.all("img")) == len(wrong) > 0


def test_the_worst_clips_come_first_and_move(folder, trained):
    saved = set_logits(folder, likes=2)
    page = Page(write_report(folder).read_text())
    wrong = [index for index in (6, 5, 4, 3, 1, 0) if saved.labels[index] != 2]
    shown = [saved.ids[index] for index in wrong if saved.ids[index] != "25"]
    texts = [text for tag, text in page.texts if tag == "bdi"][-3 * len(shown) :]
    assert texts[::3] == shown and VIDEO_ID in shown and NASTY_ID in shown
    assert page.section("Misclassified clips").count("predicted, ") == len(shown)
    assert set(texts[2::3]) == {NAMES[2]}
    for clip_id, tag in zip(shown, page.all("img"), strict=True):
        assert clip_id in tag["alt"] and (tag["width"], tag["height"]) == ("20", "20")
        picture = picture_of(tag["src"])
        frames, _ = input_frames(
            clip_at(Path(trained.settings["val_data_folder"], clip_id)),
            make_config(
                **{
                    key: trained.settings[key]
                    for key in ("clip_size", "step_size", "frame_height", "crop_size")
                }
            ),
        )
        assert (picture.format, picture.n_frames, len(frames)) == ("WEBP", 4, 4)
        assert picture.info["loop"] == 0
        for number in range(4):
            picture.seek(number)
            shown_frame = np.asarray(picture.convert("RGB"), int)
            assert picture.info["duration"] == 167  # 2 frames of 12 a second
            assert np.abs(shown_frame - frames).mean((1, 2, 3)).argmin() == number
    losses = [
        float(text) for text in re.findall(r"loss ([\d.]+)", page.section("Misclassified clips"))
    ]
    assert losses == sorted(losses, reverse=True) and losses[0] == pytest.approx(
        -float(saved.logits[wrong[0]].log_softmax(0)[saved.labels[wrong[0]]]), abs=0.01
    )
    stills = [picture_of(tag["srcset"]) for tag in page.all("source")]
    assert len(stills) == len(shown) and {still.n_frames for still in stills} == {1}


def picture_of(uri) -> Image.Image:
    kind, data = uri.split(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_stay_small_and_segments_last_their_time(trained):
    noise = np.random.default_rng(0).integers(0, 255, (32, 128, 128, 3), np.uint8)
    assert len(base64.b64decode(moving_picture(noise, 100).split(",")[1])) <= MAX_BYTES
    path = Path(trained.settings["val_data_folder"]) / VIDEO_ID
    config = make_config(
        sampling="segments",
        clip_size=64,
        frame_height=300,
        crop_size=[150, 300],
        nclips=2,
        ncrops=3,
    )
    frames, milliseconds = input_frames(clip_at(path), config)
    assert frames.shape == (32, 64, 128, 3)
    assert milliseconds == pytest.approx(1000 / 32)  # a second of video


# --- what is missing, older or damaged ---------------------------------------------------------


def test_each_missing_file_is_said(folder):
    wanted = {"config.json": "settings", "history.csv": "Curves", "logits.npz": "evaluated"}
    for name, said in wanted.items():
        (folder / name).rename(folder / "aside")
        page = Page(write_report(folder).read_text())
        assert said in page.section("What is missing") and len(page.commands) == 1
        (folder / "aside").rename(folder / name)
    (folder / "versions.json").unlink()
    assert "Starts" not in Page(write_report(folder).read_text()).section("Speed")
    for name in ("history.csv", "config.json"):  # as when a published checkpoint is evaluated
        (folder / name).unlink()
    page = Page(write_report(folder).read_text())
    assert (
        len(page.commands) == 2
        and page.all("img")
        and "the weights of" in page.section("Evaluation")
    )


def test_the_command_is_for_the_folder_and_its_last_checkpoint(folder):
    config = json.loads((folder / "config.json").read_text()) | {"checkpoint": "elsewhere.tar"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "logits.npz").unlink()
    (command,) = Page(write_report(folder).read_text()).commands
    assert train.main([*command[2:], "-g", "cpu"]) == 0
    assert "Evaluation" in page_of(folder).headings


def test_figures_of_other_weights_are_said_to_be(folder, trained):
    def said():
        return Page(write_report(folder).read_text()).section("Evaluation")

    def write_history(*rows):
        callbacks.write_history(folder / "history.csv", rows)

    rows = [
        {name: float(value) for name, value in row.items()}
        for row in read_csv(folder / "history.csv")
    ]
    best, last = (row | {"val_top1": top1} for row, top1 in zip(rows, (90.0, 10.0), strict=True))
    write_history(best, last)
    set_logits(folder, 0, epoch=2, history_row=last)
    assert "weights of epoch 2 (" in said() and "To evaluate" not in said()
    set_logits(folder, 0, epoch=1, history_row=best)
    assert "This is the best epoch; the last one is 2." in said() and "To evaluate" not in said()
    set_logits(folder, 0, epoch=1, history_row=best, step=2)
    assert "of epoch 1 and 2 steps" in said() and "last checkpoint is of epoch 2" in said()
    set_logits(folder, 0, epoch=2, history_row=last)
    write_history(best, last, last | {"epoch": 3})
    assert "weights of epoch 2" in said() and "last checkpoint is of epoch 3" in said()
    write_history(best, last | {"val_loss": 9})
    assert "not from the training" in said()
    write_history(best, last)
    set_logits(folder, 0, step=5)
    assert "of epoch 2 and 5 steps" in said()
    set_logits(folder, 0, epoch=None)
    assert "an unknown epoch" in said() and "not from the training" in said()
    saved = set_logits(folder, 0, number=2, epoch=2, step=0)
    assert "the mean of 2 networks: epoch 2 (" in said() and "To evaluate" not in said()
    annotations = SimpleNamespace(ids=np.array(saved.ids), labels=saved.labels.numpy(), groups=None)
    results.write_logits(folder / "logits.npz", annotations, saved.logits, saved.classes)
    assert "did not record" in said() and "To evaluate the last checkpoint" in said()


def test_without_its_data_the_pictures_are_left_out(folder, trained):
    for config, said in (
        ({"val_data_folder": "gone"}, "the data folder gone does not exist"),
        ({"new_key": 1}, "the config is from another version"),
    ):
        shutil.copy(trained.folder / "logits.npz", folder)
        set_logits(folder, 2, config)
        page = Page(write_report(folder).read_text())
        assert f"No pictures: {said}" in page.section("Misclassified clips")
        assert not page.all("img") and "predicted, " in page.section("Misclassified clips")
    clips = folder / "clips"
    clips.mkdir()
    shutil.copy(trained.folder / "logits.npz", folder)
    set_logits(folder, 2, {"val_data_folder": str(clips)})
    text = Page(write_report(folder).read_text()).section("Misclassified clips")
    assert text.count("No picture: ") == text.count("predicted, ") > 0


@pytest.mark.parametrize("name", ["config.json", "versions.json", "history.csv", "logits.npz"])
def test_damaged_files(folder, name, capsys):
    contents = {
        "history.csv": ["epoch,loss\n1,none\n", "loss\n1\n", "epoch,loss\nnan,1\n"],
        "logits.npz": ["PK", (folder / name).read_bytes()[:-300].decode("latin-1")],
        "config.json": ["{", "[]", "\udc80"],
        "versions.json": ["{}", "["],
    }
    for text in contents[name]:
        (folder / name).write_bytes(text.encode("latin-1", "surrogateescape"))
        assert main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {folder / name}: damaged (") and "\n" not in error[:-1]


def test_odd_figures_are_no_obstacle(folder):
    """From an earlier version, a training that went wrong, or another program."""
    (folder / "history.csv").write_text(
        "epoch,loss,val_loss,val_top1,val_top1_low\n1,1e308,-1e308,50,40\n2,-1e308,1e308,60,50\n"
    )
    versions = json.loads((folder / "versions.json").read_text())
    (folder / "versions.json").write_text(json.dumps([versions[0] | {"command": None}]))
    assert "epoch 2" in write_report(folder).read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"logits": np.zeros((7, 3))},
        {"logits": np.zeros((6, 3), np.float32)},
        {"labels": [9] * 7},
        {"labels": [-1] * 7},
        {"ids": ["1"]},
        {"origin": "{}"},
        {"classes": np.array([None])},
    ],
)
def test_logits_that_make_no_sense(folder, changes):
    with np.load(folder / "logits.npz") as file:
        arrays = dict(file) | changes
    np.savez(folder / "logits.npz", **arrays)
    with pytest.raises(UserError, match=r"logits.npz: damaged \(.*\); --eval_only writes"):
        results.read_logits(folder / "logits.npz")


def test_no_run_folder(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_report_that_fails_loses_no_training(folder, trained, tmp_path, capsys):
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    flags = [
        "-r",
        "-c",
        write_config(tmp_path / "c.json", trained.settings),
        "-g",
        "cpu",
        "--set",
        f"output_dir={folder.parent}",
        "--set",
        'model_name="7"',
    ]
    assert train.main(flags) == 0
    output = capsys.readouterr()
    assert "training is over" in output.out and "warning: no report: " in output.err
    assert "python report.py" in output.err
    assert main([str(folder)]) == 2
    (folder / "report.html").rmdir()
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"


# --- histories and matrices of all kinds -------------------------------------------------------


def history_of(*losses):
    return [{"epoch": float(epoch), "loss": loss} for epoch, loss in enumerate(losses, 1)]


def curve_of(chart, colour) -> list[list[tuple[float, float]]]:
    """The places of a curve's points, one list per piece without gaps."""
    (data,) = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--{colour}\)', chart.svg)
    return [
        [tuple(map(float, pair.split())) for pair in piece.split("L")]
        for piece in data.split("M")[1:]
    ]


def axis_texts(chart, anchor) -> list[str]:
    return re.findall(rf"text-anchor: {anchor};[^>]*>([^<]*)</text>", chart.svg)


def test_a_curve_has_gaps_where_figures_are_missing():
    history = history_of(2.0, math.nan, 1.0, 0.5, math.inf)
    history.append({"epoch": 6.0})
    chart = line_chart("Loss", "loss", history)
    assert chart.curves == ["training"]
    assert [len(piece) for piece in curve_of(chart, "orange")] == [1, 2]
    assert re.findall("<title>(.*?)</title>", chart.svg) == [
        "training, epoch 1: 2",
        "training, epoch 3: 1",
        "training, epoch 4: 0.5",
    ]
    description = "Loss by epoch: training 2 in epoch 1, 0.5 in epoch 4"
    assert f'role="img" aria-label="{description}"' in chart.svg
    assert line_chart("Loss", "loss", history_of(math.nan)) is None
    assert line_chart("Loss", "loss", []) is None


def test_curves_lie_within_their_field():
    for losses in ([1.0], [0.0, 0.0], [3e-7, 9e8], [-1.0, 1.0], [3e38, -3e38], [0.3] * 400):
        for limits in ((None, None), (0, None)):
            chart = line_chart("x", "loss", history_of(*losses), limits=limits)
            places = [place for piece in curve_of(chart, "orange") for place in piece]
            assert 1 <= len(places) <= len(losses)  # straight pieces have no points between
            assert all(56 <= x <= 408 and 11.9 <= y <= 204.1 for x, y in places), (losses, places)
            assert 2 <= len(axis_texts(chart, "end")) <= 12 and axis_texts(chart, "middle")
    assert "<title>" not in chart.svg  # of 400 epochs, markers would hide the line


def test_axes():
    chart = line_chart("x", "loss", history_of(1.0, 99.0), " %", limits=(0, 100))
    assert axis_texts(chart, "end") == ["epoch", "0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    assert axis_texts(chart, "middle") == ["1", "2"]
    (((left, low), (right, high)),) = curve_of(chart, "orange")
    assert (left, right) == (56, 408) and low - high == pytest.approx(0.98 * (204 - 12))


def test_charts_are_small_text_in_the_colours_of_the_page():
    history = [
        {"epoch": float(epoch), "loss": 1 / epoch, "val_loss": 2 / epoch} for epoch in range(1, 391)
    ]
    charts = [line_chart(title, "loss", history) for title in ("a", "b", "a")]
    assert charts[0].svg == charts[2].svg and charts[0].curves == ["training", "validation"]
    assert len(charts[0].svg) < 25_000
    for chart in charts:
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]*)", chart.svg))
        assert colours == {
            "none",
            *(f"var(--{name})" for name in ("muted", "faint", "orange", "blue")),
        }
        assert not re.search("<style| id=|url|href", chart.svg) and ">300</text>" in chart.svg
        assert curve_of(chart, "orange")[0][0][1] > curve_of(chart, "blue")[0][0][1]


def test_a_run_of_one_epoch_without_a_set_end(folder):
    lines = (folder / "history.csv").read_text().splitlines()[:2]
    columns = lines[0].split(",")
    values = dict(zip(columns, lines[1].split(","), strict=True)) | {"loss": "nan", "top1": ""}
    (folder / "history.csv").write_text("\n".join([lines[0], ",".join(values.values())]) + "\n")
    config = json.loads((folder / "config.json").read_text()) | {"num_epochs": -1}
    (folder / "config.json").write_text(json.dumps(config))
    page = Page(write_report(folder).read_text())
    labels = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    assert labels[0].startswith("Loss by epoch: validation ") and len(labels) == 4
    assert any(text == "no limit" for _, text in page.texts)


def test_many_classes_are_cut_to_those_with_mistakes():
    matrix = np.diag(np.full(174, 1000))
    matrix[100:150, 3] = 4
    rows = report_page.matrix_rows(matrix, [str(number) for number in range(174)])
    assert len(rows) == 60 and {name for name, _ in rows} >= {"3", *map(str, range(100, 150))}
    assert all(len(cells) == 60 for _, cells in rows)
    few = report_page.matrix_rows(matrix[:3, :3], "abc")
    assert [cells[number] for number, (_, cells) in enumerate(few)] == [(1000, 1.0)] * 3


@pytest.mark.slow
def test_the_picture_of_the_matrix_does_not_grow_with_the_classes():
    rng = np.random.default_rng(0)
    shapes = []
    for num_classes in (3, 27, 60, 400, 1000):
        matrix = rng.integers(0, 2, (num_classes, num_classes))
        names = [f"a class with a rather long name, number {n}" for n in range(num_classes)]
        shapes.append(confusion_matrix.draw_confusion_matrix(matrix, names).shape)
    assert all(max(shape) <= 1150 for shape in shapes), shapes
    assert shapes[0][0] < 500 and shapes[2] == shapes[3]


DARK_BLUE = (8, 48, 107)  # of a share of 100 %


def field_of(num_classes, names, cells=()):
    """The picture of a matrix with all of a class in two corners, and its field's edges."""
    matrix = np.zeros((num_classes, num_classes), int)
    matrix[[0, -1], [0, -1]] = 1000
    for row, column, count in cells:
        matrix[row, column] = count
    picture = confusion_matrix.draw_confusion_matrix(matrix, names)
    assert picture.dtype == np.uint8
    rows, columns = np.nonzero((picture == DARK_BLUE).all(2))
    return picture, rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.mark.parametrize("num_classes, has_digits", [(8, True), (50, True), (174, False)])
def test_cells_of_the_picture_are_blue_by_their_share(num_classes, has_digits):
    picture, top, bottom, left, right = field_of(
        num_classes, [""] * num_classes, [(5, 7, 1000), (5, 3, 1)]
    )
    cell = min(confusion_matrix.FIELD / num_classes, 40)
    assert (bottom - top, right - left) == pytest.approx((cell * num_classes,) * 2, abs=2)

    def pixels(row, column):
        return picture[
            round(top + row * cell) + 1 : round(top + (row + 1) * cell) - 1,
            round(left + column * cell) + 1 : round(left + (column + 1) * cell) - 1,
        ]

    assert (pixels(5, 7) == DARK_BLUE).all(2).any()
    assert (pixels(5, 7).min(2).max() > 200) == has_digits
    assert (pixels(5, 3).min() < 100) == has_digits
    assert pixels(4, 4).min() > 240 and not (pixels(5, 3) == DARK_BLUE).all(2).any()


@pytest.mark.parametrize("num_classes, named", [(50, 50), (174, 58)])
def test_classes_are_named_where_there_is_room(num_classes, named):
    picture, top, bottom, left, right = field_of(num_classes, ["I"] * num_classes)
    for beside in (
        picture[top:bottom, : left - 2].min((1, 2)),
        picture[bottom + 2 :, left:right].min((0, 2)),
    ):
        is_dark = np.concatenate([[0], beside < 200, [0]]).astype(int)
        assert np.count_nonzero(np.diff(is_dark) == 1) == named


def test_names_in_any_script_are_drawn_as_they_are(recwarn):
    names = ["Right $x$ 100%", "التمرير 👍🏽", "日本語", "Привет_мир", "", "long " * 100]
    picture, top, bottom, left, _ = field_of(6, names)
    assert picture.shape[1] < 600
    assert [str(warning.message) for warning in recwarn] == []
    height = (bottom - top) / 6
    is_named = [
        picture[round(top + row * height) : round(top + (row + 1) * height), : left - 2].min() < 200
        for row in range(6)
    ]
    assert is_named == [True] * 4 + [False, True]
    matrix = np.eye(6, dtype=int)
    plain = confusion_matrix.draw_confusion_matrix(matrix, ["x"] * 6)
    assert confusion_matrix.draw_confusion_matrix(matrix, ["$x$"] * 6).shape != plain.shape


# --- safe, and alone ---------------------------------------------------------------------------


def test_nothing_is_loaded_and_nothing_runs(trained):
    for page in (trained.after_training, trained.page):
        for tag, attributes in page.tags:
            assert tag not in ("script", "iframe", "object", "embed", "base", "form"), tag
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name in ("src", "srcset", "href", "xlink:href", "action", "poster", "data"):
                    assert value.startswith("data:"), (tag, name, value[:80])
        (policy,) = [tag["content"] for tag in page.all("meta") if "http-equiv" in tag]
        assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        style = " ".join(text for tag, text in page.texts if tag == "style")
        assert "prefers-color-scheme: dark" in style
        assert "url(" not in style and "@import" not in style
    size = (trained.folder / "report.html").stat().st_size
    assert size < 3_000_000


def test_names_and_ids_stay_text(trained):
    texts = [text for tag, text in trained.page.texts if tag == "bdi"]
    assert set(NAMES) <= set(texts)
    assert all(tag["alt"] for tag in trained.page.all("img"))
    assert [tag["lang"] for tag in trained.page.all("html")] == ["en"]
    assert len([tag for tag, _ in trained.page.tags if tag == "h1"]) == 1


def test_bytes_that_are_no_text(folder):
    starts = json.loads((folder / "versions.json").read_text())
    starts[0]["command"] = ["train.py", "-c", "caf\udce9.json"]
    (folder / "versions.json").write_text(json.dumps(starts))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "caf\\udce9.json" in page.section("Speed")


@needs_chromium
def test_in_a_real_browser(folder, tmp_path):
    set_logits(folder, likes=2)
    path = write_report(folder)
    found, complaints = look_at(path.read_text(), tmp_path, [400, 1100])
    assert complaints == []
    for width, seen in found.items():
        assert seen["title"] == "7" and seen["scripts"] == 0
        assert len(seen["pictures"]) >= 3 and set(seen["pictures"]) == {20}
        assert seen["needs"] <= width, "the page has to be moved sideways"
        assert seen["background"] == "rgb(255, 255, 255)"
    dom, console = browse(path, tmp_path / "dark.png", (1000, 1400), "--force-dark-mode")
    assert console == [] and Page(dom.removeprefix("<!DOCTYPE html>")).title == "7"
    screenshot = Image.open(tmp_path / "dark.png").convert("RGB")
    assert screenshot.size == (1000, 1400) and max(screenshot.getpixel((2, 2))) < 60
    assert len(screenshot.getcolors(1_000_000)) > 50  # text and curves, not an empty page
