"""Measure speed and memory, mostly beside the plain way and an estimated limit.

    python benchmarks/benchmark.py                      on the CPU, or on the GPU if there is one
    python benchmarks/benchmark.py --sections loader    one section of it
    python benchmarks/benchmark.py --save NAME          write results/NAME.json and .md

Each section runs in a separate process with a time limit; if it fails or is stopped, the others
still run. Each result is printed, and saved, as soon as it is known. With the same NAME again, the
command runs the remaining sections. Ways are timed alternately, round by round, and a ratio
is the median over the rounds, so that other work on the machine affects all of them. The limit is
what no implementation could beat on this machine (for steps see limit.py).
"""

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks import (
    activations,
    convolutions,
    epoch,
    frozen,
    loader,
    machine,
    memory,
    packs,
    step,
)
from benchmarks.memory import PROJECT

PRECISIONS = ["bf16", "fp16", "tf32", "fp32"]  # the default first
TINY = ["clip_size=4", "crop_size=20", "block_widths=[4]", "head_widths=[8]"]
SECONDS_TO_END = 10  # from SIGTERM to SIGKILL
NEEDS_GPU = "left out: needs a GPU"
COMMAND = [sys.executable, __file__]


class Section(NamedTuple):
    """A part of the command, which runs in a separate process."""

    measure: callable  # (device, options, folder) -> results: {"what": ..., figure: value}
    seconds: float  # time limit
    title: str
    needs_gpu: bool = False


def run_gpu_tests(device, options, folder):
    """Yield the outcome of each test that needs a GPU; raise RuntimeError if one failed."""
    # Other files are not collected, since they need packages that these do not.
    paths = [
        path
        for path in sorted((PROJECT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--tb=short"]
    # Within the process, it would be set too late.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    failed = []
    for path in paths:
        report = folder / f"{path.stem}.xml"
        ended = subprocess.run(
            [*command, path, f"--junit-xml={report}"], cwd=PROJECT, env=environment
        )
        failed += [path.name] if ended.returncode else []
        for test in ElementTree.parse(report).iter("testcase"):
            outcomes = [child.tag for child in test if child.tag in ("failure", "error", "skipped")]
            yield {
                "what": f"{path.name}: {test.get('name')}",
                "outcome": outcomes[0] if outcomes else "passed",
                "seconds": float(test.get("time")),
            }
    if failed:
        raise RuntimeError(f"pytest: failures in {', '.join(failed)}")


SECTIONS = {
    "loader": Section(loader.measure, 120, "The loader"),
    "step": Section(step.measure, 200, "A training step"),
    "evaluation": Section(step.measure_evaluation, 120, "Evaluation"),
    "epoch": Section(epoch.measure, 200, "An epoch through the loader"),
    "memory": Section(memory.measure, 180, "A loader worker's memory, and the start"),
    "tests": Section(run_gpu_tests, 120, "Tests that need a GPU", True),
    "checks": Section(convolutions.check, 60, "Convolutions against fp32"),
    "compiled": Section(step.measure_compiled, 180, "A compiled training step", True),
    "convolutions": Section(convolutions.measure, 60, "Time of each convolution", True),
    "packs": Section(packs.measure, 300, "Packs beside folders"),
    "features": Section(frozen.measure, 300, "Features of a frozen backbone"),
    "activations": Section(activations.measure, 240, "Memory kept for the backward pass"),
}


# --- the command ---------------------------------------------------------------------------------


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    if options.section:
        return measure_section(options)
    device = machine.device_of(options.device)
    with tempfile.TemporaryDirectory() as folder:
        report = Report(options.save or f"{folder}/results", machine.describe(device))
        command = [*COMMAND, *arguments, "--report", report.name, "--section"]
        deadline = time.monotonic() + 60 * options.minutes
        for name in options.sections:
            if report.is_done(name) and not options.again:
                print(f"{name}: done before; --again repeats it")
                continue
            seconds = min(SECTIONS[name].seconds, deadline - time.monotonic())
            report.start(name)
            if SECTIONS[name].needs_gpu and device.type == "cpu":
                report.finish(name, NEEDS_GPU)
            elif seconds < 1:
                report.finish(name, "left out: no time is left; raise --minutes")
            else:
                report.finish(name, **run_section([*command, name], seconds))
            print(f"{name}: {report.sections[name]['status']}\n", flush=True)
        print(report.markdown())
        statuses = {report.sections[name]["status"] for name in options.sections}
        return 0 if statuses <= {"done", NEEDS_GPU} else 1


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", help="(default: a GPU if there is one)")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help="what to measure (default: all)",
    )
    parser.add_argument(
        "--minutes", type=float, default=9, help="stop after this time (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="repeat finished sections")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    parser.add_argument(
        "--small", action="store_true", help="a tiny network and few clips, to try the command"
    )
    parser.add_argument("--rounds", type=int, help="repetitions of each measurement (default: 3)")
    parser.add_argument("--batch_size", type=int, help="(default: 8; on a GPU 100, as for Jester)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=[*PRECISIONS, "auto"],
        help="(default: the config's; on a GPU all)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        dest="overrides",
        help="keys of the tutorial's config to change, for steps, evaluation and epoch",
    )
    parser.add_argument(
        "--clips",
        type=int,
        help="clips in the set of which a loader worker's memory is measured (default: 20000; "
        "Jester has 118562)",
    )
    parser.add_argument(
        "--epoch_clips", type=int, help="clips in an epoch (default: 64; on a GPU 30000)"
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="loader workers of an epoch (default: %(default)s)",
    )
    for name in ("section", "report"):  # for the processes that the command starts
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    has_gpu = machine.device_of(options.device).type == "cuda"
    defaults = {
        "rounds": 3,
        "batch_size": 100 if has_gpu else 8,
        "clips": 20_000,
        "epoch_clips": 30_000 if has_gpu else 64,
        "precisions": PRECISIONS if has_gpu else [None],
    }
    if options.small:
        defaults = {
            "rounds": 1,
            "batch_size": 4,
            "clips": 100,
            "epoch_clips": 12,
            "precisions": [None],
        }
        options.overrides = [*TINY, *options.overrides]
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def run_section(command, seconds) -> dict[str, str]:
    """Run a section in a separate process; return its status, and its traceback if it failed."""
    print(*command, flush=True)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=PROJECT, stderr=errors, start_new_session=True) as process,
    ):
        try:
            status = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = f"cut off after {seconds:.0f} s"
        finally:
            end_group(process)
        errors.seek(0)
        text = "" if status == "done" else "".join(errors.readlines()[-40:])
    print(text, end="")
    return {"status": status, "error": text}


def end_group(process) -> None:
    """End the process and those that it started. torchrun needs a moment to end its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        os.killpg(process.pid, signal.SIGKILL)


def measure_section(options) -> int:
    """Measure one section in this process, and put each result into the report."""
    device = machine.device_of(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinning memory would use GPU 0
    report = Report(options.report, {})
    with tempfile.TemporaryDirectory() as folder:
        measure = SECTIONS[options.section].measure
        for result in measure(device, options, Path(folder)):
            report.add(options.section, result)
            print(
                result["what"],
                *(
                    f"  {key}: {format_figure(value)}"
                    for key, value in result.items()
                    if key != "what"
                ),
                flush=True,
            )
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


# --- the report ----------------------------------------------------------------------------------


class Report:
    """The results, in results/NAME.json and results/NAME.md."""

    def __init__(self, name, about):
        self.name, self.about, self.starts = name, about, {}

    @property
    def sections(self) -> dict:
        path = machine.RESULTS / f"{self.name}.json"
        return json.loads(path.read_text()).get("sections", {}) if path.exists() else {}

    def is_done(self, name) -> bool:
        return self.sections.get(name, {}).get("status") == "done"

    def start(self, name) -> None:
        self.starts[name] = time.monotonic()
        self._put(
            name,
            {"status": "running", "seconds": 0, "results": [], "error": "", "about": self.about},
        )

    def add(self, name, result) -> None:
        section = self.sections[name]
        self._put(name, section | {"results": [*section["results"], result]})

    def finish(self, name, status, error="") -> None:
        seconds = round(time.monotonic() - self.starts[name], 1)
        self._put(
            name, self.sections[name] | {"status": status, "error": error, "seconds": seconds}
        )

    def _put(self, name, section) -> None:
        sections = self.sections | {name: section}
        machine.save(self.name, {"sections": sections}, markdown(sections))

    def markdown(self) -> str:
        return markdown(self.sections)


def markdown(sections) -> str:
    """Return a table for each section."""
    text = ["`python benchmarks/benchmark.py`"]
    for name, section in sections.items():
        about = ", ".join(map(str, section["about"].values()))
        title = SECTIONS[name].title if name in SECTIONS else name
        text.append(
            f"## {title}\n\n`{name}`: {section['status']}, {section['seconds']:.0f} s; {about}"
        )
        text += [table(section["results"])] if section["results"] else []
        text += [f"```\n{section['error']}```"] if section["error"] else []
    return "\n\n".join(text) + "\n"


def table(results) -> str:
    """Return the results as a Markdown table; a result may lack some of the figures."""
    columns = list(dict.fromkeys(["what", *(key for result in results for key in result)]))
    return machine.markdown_table(
        columns, [[format_figure(result.get(column)) for column in columns] for result in results]
    )


def format_figure(value) -> str:
    """Return a figure, or a list's median, with three digits."""
    if value is None:
        return ""
    if isinstance(value, list):
        value = statistics.median(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
