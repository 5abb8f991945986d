"""Importing the project changes nothing in the importing program."""

import subprocess
import sys

from runs import PROJECT

# What PyTorch's own modules change when they are imported is there before.
IMPORT_ALL = """
import signal, sys, warnings
import cv2, torch, torchvision, torch.distributed.launcher.api, torch.utils.data
from torch.nn.utils import clip_grads_with_norm_

def state():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook),
        "filters": list(warnings.filters),
        "flags": (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32,
                  torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "seed": torch.initial_seed(),
    }

before = state()
import train, predict, explain, export, report, teach
assert "matplotlib" not in sys.modules and "jinja2" not in sys.modules, "they delay each start"
after = state()
changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
assert not changed, changed
"""


def test_importing_the_commands_changes_nothing():
    command = [sys.executable, "-c", IMPORT_ALL]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout == "", ended.stdout + ended.stderr
