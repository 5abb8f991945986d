"""Everything that needs a GPU, in one command and less than nine minutes.

    python benchmarks/on_a_gpu.py                        everything, on the first GPU
    python benchmarks/on_a_gpu.py --sections speed       a part of it
    python benchmarks/on_a_gpu.py --device cpu --small   to try this file itself

Each section runs in a separate process with a time limit; if it fails or is stopped, the others
still run. Each result is written to `results/<GPU>.json` and `.md` as soon as it is known. If
started again, the command runs the sections that are not done yet.
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd
import torch
import torch.distributed as dist

import train
from benchmarks import convolutions, epoch, limit, machine, step
from benchmarks.memory import PROJECT
from benchmarks.sections import Report
from config import Config
from model import build_model
from networks.convolution_check import convolution_cases, find_faults
from system import processes
from system.device import number_format, prepare, to_device
from system.memory import MIB, format_bytes

PRECISIONS = ["bf16", "fp16", "tf32", "fp32"]  # the default first
SMALL = ["clip_size=4", "crop_size=20", "block_widths=[4]", "head_widths=[8]"]
SECONDS_TO_END = 10  # from SIGTERM to SIGKILL
MARK = "RESULT "  # before a result, in what a section prints
COMMAND = [sys.executable, __file__]


class Section(NamedTuple):
    """A part of the command, which runs in a separate process."""

    results: callable  # (device, options) -> iterator of results: {"what": ..., figure: value}
    seconds: float  # time limit
    title: str


# --- the sections --------------------------------------------------------------------------------


def about(device, _options):
    """Machine, versions and date."""
    found = machine.describe(device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        found |= {"cudnn": f"cuDNN {torch.backends.cudnn.version()}",
                  "memory": f"{format_bytes(memory)} of memory"}
    yield found


def check_arithmetic(device, options):
    for precision in options.precisions:
        if precision != "fp32":  # what the others are compared with
            yield convolution_checks(device, precision, options)


def convolution_checks(device, precision, options) -> dict:
    """The check of each distinct convolution of the tutorial's network against fp32."""
    prepare(device, precision, deterministic=False)
    config = config_for(options, precision)
    model = to_device(build_model(config, step.NUM_CLASSES), device)
    clip_shape = (config.clip_size, *config.crop)
    cases = convolution_cases(model, clip_shape, config.batch_size)
    faults = find_faults(model, clip_shape, config.batch_size, device, precision, training=True)
    return {"what": precision, "convolutions": len(cases),
            "found": "; ".join(map(str, faults)) or "all are right"}


def run_tests(device, options):
    """The tests that need a GPU, except for `resume_exactly`.

    Other test files are not imported, since they need packages that these do not.
    """
    paths = [str(path) for path in sorted((PROJECT / "tests").rglob("test_*.py"))
             if "mark.gpu" in path.read_text()]
    paths = ["tests/test_gpu.py"] if options.small else paths
    yield from test_results(*paths, "-k", "not bit_for_bit")


def resume_exactly(device, options):
    yield from test_results("tests/test_gpu.py", "-k", "bit_for_bit")


def test_results(*arguments):
    """A result for each test with the marker `gpu`; raises RuntimeError if one failed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-vv", "--tb=short", *arguments]
    # A test that shares its process with others would set this too late.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"(tests/\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)", line):
            yield {"what": found[1], "outcome": found[2].lower()}
    if process.wait():
        raise RuntimeError(f"pytest ended with {process.returncode}")


def measure_speed(device, options):
    """Clips/s of a step and of evaluation, and memory, in each precision beside the plain way."""
    config = config_for(options, "fp32")
    plain = figures_of(device, config.batch_size, step.plain_trainer(device, config))
    evaluate = step.plain_evaluator(device, config)
    plain["evaluation, clips/s"] = clips_per_second(device, config.batch_size, evaluate)
    yield {"what": "the plain way, in PyTorch's default precision"} | plain
    for precision in options.precisions:
        config = config_for(options, precision)
        ours = figures_of(device, config.batch_size, step.our_trainer(device, config))
        evaluate = step.our_evaluator(device, config)
        ours["evaluation, clips/s"] = clips_per_second(device, config.videos_per_eval_batch,
                                                       evaluate)
        beside = {key.replace("clips/s", "times plain"): round(ours[key] / plain[key], 2)
                  for key in ours if key.endswith("clips/s")}
        yield {"what": precision} | ours | beside | limits(device, config, ours)


def time_convolutions(device, options):
    for precision in dict.fromkeys([options.precisions[0], "fp32"]):
        config = config_for(options, precision)
        yield from convolutions.measure(device, config, precision)


def measure_compiled(device, options):
    """Clips/s of a compiled step, and its memory; evaluation is never compiled."""
    for precision in options.precisions:
        torch.compiler.reset()
        config = config_for(options, precision, "compile=true")
        start = time.perf_counter()
        train_step = step.our_trainer(device, config)
        train_step()
        seconds = time.perf_counter() - start
        ours = figures_of(device, config.batch_size, train_step)
        yield {"what": precision} | ours | limits(device, config, ours) | {
            "s to compile": round(seconds, 1)}  # fmt: skip


def figures_of(device, num_clips, train_step) -> dict:
    """Clips/s and MiB per clip of a training step."""
    figures = {"step, clips/s": clips_per_second(device, num_clips, train_step)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        train_step()
        machine.synchronise(device)
        peak = torch.cuda.max_memory_allocated(device)
        figures["peak, MiB/clip"] = round(peak / MIB / num_clips, 1)
    return figures


def clips_per_second(device, num_clips, function) -> float:
    for _ in range(3):  # algorithms are chosen, memory is allocated
        function()
    calls = machine.calls_between(device)
    seconds = [machine.seconds_of(function, device, calls) for _ in range(5)]
    return round(num_clips / statistics.median(seconds), 1)


def limits(device, config, ours) -> dict:
    """The limit of the device (see limit.py), and the share of it that is reached."""
    number_type = number_format(config.precision, device)
    speed = limit.measure_speed(device, config.precision)
    found = {}
    sizes = {"step": config.batch_size, "evaluation": config.videos_per_eval_batch}
    for name, num_clips in sizes.items():
        if f"{name}, clips/s" not in ours:
            continue
        work = limit.count(config, num_clips, step.NUM_CLASSES, name == "step", number_type)
        highest, reason = limit.clips_per_second(work, num_clips, speed)
        found[f"{name}, limit"] = f"{highest:,.0f} ({reason})"
        found[f"{name}, % of limit"] = round(100 * ours[f"{name}, clips/s"] / highest, 1)
    return found


def measure_epoch(device, options):
    with tempfile.TemporaryDirectory() as folder:
        for row in epoch.measure(device, options, folder):
            yield {"what": row["what"], "value": round(row["ours"], 1)}


# --- several processes on one GPU ----------------------------------------------------------------


def train_in_processes(device, options):
    """Losses of two processes with gloo and of one with NCCL, and of one without either."""
    alone = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        own = SimpleNamespace(epoch_clips=16, batch_size=8, num_workers=1, overrides=[
            *options.overrides, "precision=fp32", "num_epochs=2", "dropout=0", "affine_degrees=0",
            "affine_translate=0", f"output_dir={folder}",
        ])  # fmt: skip
        config = epoch.write_config(Path(folder) / "data", device, own)
        expected = losses_of(config, folder, device, None, 1)
        for backend, number in (("gloo", 2), (alone, 1)):
            losses = losses_of(config, folder, device, backend, number)
            difference = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
            yield {"what": f"{number} by {backend}", "losses": losses, "without": expected,
                   "largest relative difference": difference}
            if not difference < 0.01:  # NaN, too
                raise RuntimeError(f"{number} by {backend}: other losses than without")


def losses_of(config, folder, device, backend, number) -> list[float]:
    """The training loss of each epoch of a run in `number` processes, two parts in total."""
    keys = json.loads(Path(config).read_text())
    keys |= {"model_name": f"{number} by {backend}", "accumulate_steps": 2 // number}
    path = Path(folder) / f"{keys['model_name']}.json"
    path.write_text(json.dumps(keys))
    command = [__file__, "--process", str(backend), "--config", path, "--device", str(device)]
    if backend:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
        command = launcher + command
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True)
    return pd.read_csv(Path(folder) / keys["model_name"] / "history.csv")["loss"].tolist()


def one_process(options) -> int:
    """Runs `train.py` on `--device` for any process; `--process` is a backend or "None".

    The program gives each process its own GPU and does not wrap a single process; here two share
    a GPU, and a single one averages its gradients, too.
    """
    device, backend = machine.device_of(options.device), options.process
    if backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # flags and figures travel between CPUs
    init_process_group, parallel = dist.init_process_group, processes.parallel

    def with_backend(_backend, **settings):
        return init_process_group(backend, **settings)

    def always_parallel(*arguments, **settings):
        with mock.patch.object(processes, "world_size", lambda: max(2, dist.get_world_size())):
            return parallel(*arguments, **settings)

    with mock.patch.object(train, "choose_device", lambda *_: device):
        if backend == "None":
            return train.main(["-c", options.config])
        with mock.patch.object(dist, "init_process_group", with_backend), \
                mock.patch.object(processes, "parallel", always_parallel):
            return train.main(["-c", options.config])


SECTIONS = {
    "checks": Section(check_arithmetic, 35, "Convolutions against fp32"),
    "speed": Section(measure_speed, 100, "Speed and memory"),
    "epoch": Section(measure_epoch, 85, "An epoch of Jester's size"),
    "compiled": Section(measure_compiled, 90, "Speed and memory of the compiled network"),
    "tests": Section(run_tests, 60, "Tests that need a GPU"),
    "resume": Section(resume_exactly, 40, "A deterministic run that is resumed"),
    "processes": Section(train_in_processes, 75, "Several processes on one GPU"),
    "convolutions": Section(time_convolutions, 30, "Time of each convolution"),
}


# --- the command ---------------------------------------------------------------------------------


def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    if options.process:
        return one_process(options)
    if options.section:
        return print_results(options)
    about_run = run_section("about", 60, options)
    if not about_run["results"]:
        return 1
    titles = {name: section.title for name, section in SECTIONS.items()}
    report = Report(options.save, about_run["results"][0], titles)
    deadline = time.monotonic() + 60 * options.minutes
    for name in options.sections:
        if report.is_done(name) and not options.again:
            print(f"{name}: done before")
            continue
        seconds = min(SECTIONS[name].seconds, deadline - time.monotonic())
        if seconds > SECONDS_TO_END:
            run = run_section(name, seconds, options, lambda run, name=name: report.put(name, run))
        else:
            run = {"status": "left out: no time is left", "seconds": 0, "results": [], "error": ""}
        report.put(name, run)
        print(f"{name}: {run['status']} in {run['seconds']:.0f} s", flush=True)
    print(f"\n{report.markdown()}")
    return 0 if all(map(report.is_done, options.sections)) else 1


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", help="(default: a GPU if there is one)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=9, help="in total (%(default)s)")
    parser.add_argument("--again", action="store_true", help="repeat what is done already")
    parser.add_argument("--small", action="store_true", help="a tiny network and few clips")
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json (the GPU's name)")
    for name in ("section", "process", "config"):  # what the processes are told that it starts
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.overrides = SMALL if options.small else []
    options.precisions = PRECISIONS[:1] if options.small else PRECISIONS
    options.batch_size = 4 if options.small else 100
    options.epoch_clips = 24 if options.small else epoch.CLIPS_OF_JESTER
    options.epoch_seconds = 40
    options.num_workers = len(os.sched_getaffinity(0))
    return options


def config_for(options, precision, *overrides) -> Config:
    keys = [*options.overrides, f"precision={precision}", f"eval_precision={precision}", *overrides]
    return step.make_config(SimpleNamespace(batch_size=options.batch_size, overrides=keys))


def print_results(options) -> int:
    """Runs a section in its own process."""
    device = machine.device_of(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinning memory would use GPU 0
    results = about if options.section == "about" else SECTIONS[options.section].results
    for result in results(device, options):
        print(MARK + json.dumps(result), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


def run_section(name, seconds, options, put=lambda run: None) -> dict:
    """Runs a section in a separate process, and calls `put` after each result.

    Returns status, seconds, results, and the end of what the process printed if it failed. The
    command `timeout` ends the process and its children; torchrun needs a moment to end its own.
    """
    command = ["timeout", f"--kill-after={SECONDS_TO_END}", str(seconds), *COMMAND]
    command += ["--section", name, *(["--device", options.device] if options.device else []),
                *(["--small"] if options.small else [])]
    print("", *command, flush=True)
    start = time.monotonic()
    run, printed = {"status": "running", "seconds": 0, "results": [], "error": ""}, []
    with subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith(MARK):
                    run["results"].append(json.loads(line.removeprefix(MARK)))
                    put(run)
                printed.append(line)
        finally:
            process.terminate()  # Ctrl-C does not reach it; it passes the signal on
    run["status"] = {0: "done", 124: f"cut off after {seconds:.0f} s"}.get(
        process.returncode, "failed")
    if run["status"] != "done":
        run["error"] = "".join(printed[-40:])
    return run | {"seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    sys.exit(main())
