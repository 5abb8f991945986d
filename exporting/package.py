"""Write a trained network as a folder or zip: network.onnx, classify.py, index.html, README.md."""

import base64
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clips.annotations import Annotations
from scoring.loading import load_network
from scoring.predictor import Predictor
from system.errors import UserError, is_disk_full
from system.files import atomic_write

if TYPE_CHECKING:
    from exporting.checking import Agreement

CPU = torch.device("cpu")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # that no other command needs
TEMPLATES = Path(__file__).parent
NETWORK, SCRIPT, PAGE, CARD = "network.onnx", "classify.py", "index.html", "README.md"
RUNTIME = "runtime"  # a folder
# The part of onnxruntime-web that the page needs: the WebAssembly build, for processors.
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
CDN_VERSION = "1.30.0"
CDN_ORIGIN = "https://cdn.jsdelivr.net"
CDN = f"{CDN_ORIGIN}/npm/onnxruntime-web@{CDN_VERSION}/dist/"
CDN_HASHES = (
    "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
)


def export(
    checkpoint,
    output: Path,
    runtime: Path | None = None,
    on_progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> "Agreement":
    """Write the folder, or the zip if `output` ends with .zip, and return what its check found.

    runtime: an unpacked npm package onnxruntime-web to put beside the page; None: the page takes
    it from a public CDN. on_progress: called with the fraction that is done, and a description.
    Nothing is written before the exported network was compared with the checkpoint's. Raises
    UserError if it cannot be exported, differs, or if `output` is something else.
    """
    check_packages()
    from exporting.checking import compare  # needs onnxruntime, as only this command does

    _check_output(output)
    runtime_files = runtime_of(runtime)
    on_progress(0.0, "building the network")
    loaded = load_network(checkpoint, CPU)
    epoch = loaded.checkpoint.get("epoch", 0)
    predictor = Predictor(loaded.config, loaded.classes, loaded.network, CPU, epoch)
    about, validation = _describe(predictor, loaded.checkpoint)
    with _new_folder(output) as folder:
        _write_network(folder / NETWORK, predictor, about, checkpoint)
        agreement = compare(
            folder / NETWORK,
            predictor,
            validation,
            lambda fraction, text: on_progress(0.3 + 0.6 * fraction, text),
        )
        agreement.raise_if_bad()
        on_progress(0.9, "writing")
        _write_others(folder, about, agreement, runtime_files, runtime)
        _move(folder, output)
    on_progress(1.0, "done")
    return agreement


@contextmanager
def _new_folder(output: Path):
    """Make a folder beside `output`, and delete it in the end. Raises UserError on a full disk."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            yield Path(folder)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"--output {output}: the disk is full; make room, or choose a place on another disk"
        ) from None


def _describe(predictor: Predictor, checkpoint: dict) -> tuple[dict, Annotations | None]:
    """Return the metadata, and the validation clips if they are here."""
    from exporting.about import describe, read_set

    train, validation = (
        read_set(predictor.config, name, predictor.classes) for name in ("train", "validation")
    )
    return describe(predictor, checkpoint, train, validation), validation


def _write_network(path: Path, predictor: Predictor, about: dict, checkpoint) -> None:
    from exporting.graph import build_graph

    model = build_graph(predictor, checkpoint)
    entry = model.metadata_props.add()
    entry.key, entry.value = "about", json.dumps(about, ensure_ascii=False, allow_nan=False)
    path.write_bytes(model.SerializeToString())


def _write_others(folder: Path, about, agreement, runtime_files: dict, runtime) -> None:
    """Write the script, the page with its runtime, and the card."""
    from exporting.about import write_card

    shutil.copyfile(TEMPLATES / SCRIPT, folder / SCRIPT)
    (folder / PAGE).write_text(build_page(runtime_files), encoding="utf-8")
    card = write_card(about, agreement, sentence_on(runtime_files))
    (folder / CARD).write_text(card, encoding="utf-8")
    if runtime:
        (folder / RUNTIME).mkdir()
        for name in RUNTIME_FILES:
            shutil.copyfile(runtime / "dist" / name, folder / RUNTIME / name)


def check_packages() -> None:
    """Raise UserError that says how to install a package that is missing."""
    try:
        for name in PACKAGES:
            import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; run `python -m pip install -r requirements-export.txt`"
        ) from None


def _check_output(output: Path) -> None:
    """Raise UserError unless `output` is a zip, or a folder that is new or an older export."""
    if output.suffix == ".zip":
        if output.is_dir():
            raise UserError(f"--output {output}: is a folder; give another name for the zip")
    elif output.suffix in (".onnx", ".pt2", ".pt"):
        raise UserError(
            f"--output {output}: give a folder, such as {output.stem}/, or {output.stem}.zip; the "
            f"network is the file {NETWORK} in it"
        )
    elif output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; give a folder or a name ending with .zip")
    elif output.is_dir() and any(output.iterdir()) and not (output / NETWORK).exists():
        raise UserError(
            f"--output {output}: has other files, and no {NETWORK} of an earlier export; give a "
            "new folder"
        )


# --- the page's runtime -------------------------------------------------------------------------


def runtime_of(folder: Path | None) -> dict:
    """Return where the page finds its runtime, its version, and its files with their hashes.

    folder: an unpacked npm package onnxruntime-web. Raises UserError if it is something else.
    """
    if folder is None:
        return {
            "at": CDN,
            "version": CDN_VERSION,
            "files": dict(zip(RUNTIME_FILES, CDN_HASHES, strict=True)),
        }
    try:
        package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        hashes = {name: integrity((folder / "dist" / name).read_bytes()) for name in RUNTIME_FILES}
        return {"at": f"{RUNTIME}/", "version": package["version"], "files": hashes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--runtime {folder}: not the npm package onnxruntime-web ({error}); run `npm pack "
            "onnxruntime-web`, unpack it, and give its folder `package`"
        ) from None


def build_page(runtime: dict) -> str:
    """Return the page; runtime: of `runtime_of`."""
    page = (TEMPLATES / PAGE).read_text(encoding="utf-8")
    page = page.replace("RUNTIME_JSON", json.dumps(runtime).replace("<", "\\u003c"))
    return page.replace("RUNTIME_ORIGIN", CDN_ORIGIN if runtime["at"] == CDN else "")


def integrity(data: bytes) -> str:
    """Return the hash by which a browser checks what it fetches. (W3C Subresource Integrity)"""
    return f"sha384-{base64.b64encode(hashlib.sha384(data).digest()).decode()}"


def sentence_on(runtime: dict) -> str:
    """Return where the page takes its runtime from."""
    if runtime["at"] == CDN:
        return f"It fetches onnxruntime-web {CDN_VERSION} from {CDN}, checked by its hash."
    return f"onnxruntime-web {runtime['version']} is beside it, in {runtime['at']}."


# --- the output ---------------------------------------------------------------------------------


def _move(folder: Path, output: Path) -> None:
    """Make the zip, or move the files into the folder `output`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if output.suffix == ".zip":
        with (
            atomic_write(output) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for path in files:
                archive.write(path, path.relative_to(folder))
        return
    for path in files:
        place = output / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
