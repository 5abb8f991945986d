"""The benchmark of packs runs, at a small size."""

import json

import pytest

from benchmarks import machine, packing


@pytest.mark.slow
def test_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(packing, "HOLE", 2**33)
    monkeypatch.setattr(packing, "READS", 20)
    monkeypatch.setattr(packing, "DROP_CACHES", tmp_path / "none")
    assert packing.main(["--rounds", "1", "--clips", "17", "--many_clips", "3000",
                         "--save", "test"]) == 0  # fmt: skip
    rows = json.loads((tmp_path / "test.json").read_text())["rows"]
    assert [row["what"].split(":")[0] for row in rows] == [
        "loader, one worker, warm", "reading alone, warm", "copying and deleting, warm",
        "packing a folder, warm", "packing a tar.gz file, warm",
        "writing 108,000 frames of one byte", "writing 108,000 frames",
        "opening 108,000 frames", "opening 108,000 frames",
        "a forked worker that reads 20 of its clips"]  # fmt: skip
    assert rows[1]["ratio"] > 0 and rows[7]["ours"] > 0
    assert (tmp_path / "test.md").read_text().count("\n| ") >= len(rows)
