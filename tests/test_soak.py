"""A run that is killed again and again, at any moment, ends as the one that never was.

`python -m pytest -m slow -s tests/test_soak.py` takes minutes and prints what was met.
"""

import random
import signal
import time
from collections import Counter

import pytest
from runs import Command, differences, make_settings, run_folder, write_config

import train
from training.checkpoint import DamagedCheckpointError, load_checkpoint

NUM_KILLS = 40
ENDS = {  # how a life ends, and how often
    "killed while it starts": 1,
    "killed while it trains": 4,
    "killed while it saves": 4,
    "SIGTERM": 1,
    "SIGINT": 1,
}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(tmp_path):
    settings = make_settings(tmp_path, block_widths=[32, 64], num_epochs=60, schedule="cosine")
    assert train.main(["-c", write_config(tmp_path / "whole.json", settings), "-g", "cpu"]) == 0
    own = settings | {"output_dir": str(tmp_path / "killed"), "num_workers": 2}
    config, folder = write_config(tmp_path / "killed.json", own), run_folder(own)

    rng, met = random.Random(0), Counter()
    while sum(met[end] for end in ENDS) < NUM_KILLS:
        end = rng.choices(list(ENDS), ENDS.values())[0]
        command = Command(config, "--resume", "auto", "--set", f"num_workers={rng.choice([0, 2])}")
        status, output, errors = end_life(command, end, folder, rng)
        expected = {"SIGTERM": 128 + signal.SIGTERM, "SIGINT": 128 + signal.SIGINT}
        assert status == expected.get(end, -signal.SIGKILL), output + errors
        # A worker that hands over a batch to a killed process has a traceback of Python's.
        assert "Traceback" not in errors or end not in expected, errors
        assert "error:" not in errors
        met[end] += 1
        met["gone on from the one before"] += "the previous one" in errors
        met["half a file left"] += any(folder.glob("*.partial"))
        met["last checkpoint missing"] += not is_whole(folder / "checkpoint.pth.tar")
    saved = load_checkpoint(folder / "checkpoint.pth.tar")
    print(f"\n{NUM_KILLS} lives, up to epoch {saved['epoch']}, step {saved['step']}: {dict(met)}")

    status, output, errors = Command(config, "--resume", "auto").finish(1800)
    assert status == 0, output + errors
    assert differences(run_folder(settings), folder) == []


def end_life(command, end, folder, rng):
    """Ends the command in one of ENDS's ways; its exit status, stdout and stderr."""
    if end == "killed while it starts":
        time.sleep(rng.uniform(0, 4))
    else:
        command.wait_for("GFLOP")
        time.sleep(rng.uniform(0, 0.6))
    deadline = time.monotonic() + 5
    while end == "killed while it saves" and time.monotonic() < deadline:
        if (folder / "checkpoint.pth.tar.partial").exists():
            break
    number = getattr(signal, end, signal.SIGKILL)
    command.send(number, to_group=number != signal.SIGKILL or rng.random() < 0.5)
    return command.finish()


def is_whole(path) -> bool:
    try:
        load_checkpoint(path)
    except DamagedCheckpointError:
        return False
    return True
