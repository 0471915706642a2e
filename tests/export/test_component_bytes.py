"""Exports of one key are the same bytes on one machine: whoever makes them, where, and with how many threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import accelerator
from accelerator.cache import ContentCache
from accelerator.engines.reference import examples
from accelerator.export.component import Built, export_component
from accelerator.export.tracing import on_one_thread
from tests import ROOT
from tests.doubles import component

PACKAGE = Path(accelerator.__file__).parent

# Every file of every entry, and the manifests but for when they were written (which their own digest covers, too).
EXPORT = """
import hashlib, json, sys, warnings
from pathlib import Path

import torch

from accelerator.cache import ContentCache
from accelerator.export.component import export_beside, export_component

root, kind, threads, backwards = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "backwards"
torch.set_num_threads(threads)
if kind == "vits":
    sys.path.insert(1, sys.argv[5])
    warnings.simplefilter("ignore")
    from accelerator.engines.vits.adapter import VitsAdapter
    from tests.engines.vits.tiny import pipeline

    root.mkdir()
    parts = VitsAdapter(pipeline(root)).parts()
else:
    from accelerator.engines.reference import ReferenceAdapter
    from accelerator.reference import load

    language = kind == "language model"
    parts = [part for part in ReferenceAdapter(load("tiny")).parts() if part.streams is language]

made = {c.name: c for part in parts for backend in part.backends for c in backend.components}
alone = [component for component in made.values() if not component.beside]
work = [(component, precision) for component in alone for precision in component.precisions]
cache, exports = ContentCache(root / "cache"), []
for own, precision in reversed(work) if backwards else work:
    exports.append((own, precision, export_component(own, precision, cache)))
    for other in made.values():
        if other.beside == own.name and (export := export_beside(other, exports[-1][2], cache)) is not None:
            exports.append((other, precision, export))
found = {}
for made, precision, export in exports:
    for file in sorted(export.path.rglob("*")):
        data = file.read_bytes()
        if file.name == "manifest.json":
            manifest = json.loads(data)
            del manifest["created_at"], manifest["digest"]
            data = json.dumps(manifest, sort_keys=True).encode()
        found[f"{made.name} {precision} {export.entry.key} {file.name}"] = hashlib.sha256(data).hexdigest()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "files"),
    [("language model", 3 + 5 + 2 * 6), ("codec", 2 * 2), ("vits", 2 * 2 + 1)],  # at least, beside their manifests
)
def test_two_machines_in_one_make_the_same_exports(kind: str, files: int, tmp_path: Path) -> None:
    """Two checkouts, working directories, hash seeds and orders; one thread in all that has any, and three."""
    if kind == "vits":
        pytest.importorskip("transformers", reason="pip install transformers")
    running = []
    for threads, order in ((1, "forwards"), (3, "backwards")):
        place = tmp_path / f"checkout of {threads}"
        place.mkdir()
        (place / "accelerator").symlink_to(PACKAGE)
        environment = {
            **os.environ,
            "PYTHONPATH": str(place),
            "PYTHONHASHSEED": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "ACCELERATOR_KERNELS": "none",  # machine code is another matter, and takes a minute to make
        }
        told = [str(place / "made"), kind, str(threads), order, str(ROOT)]
        command = [sys.executable, "-W", "ignore", "-c", EXPORT, *told]
        running.append(subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True))
    first, second = (json.loads(each.communicate(timeout=600)[0].splitlines()[-1]) for each in running)
    assert len(first) >= files + sum("manifest.json" in name for name in first)
    assert first == second


def test_what_builds_and_proves_has_one_thread_and_others_keep_theirs(tmp_path: Path) -> None:
    """PyTorch's number is each thread's own, but for those that begin: they would be left with one for good."""
    seen: dict[str, list[int]] = {"build": [], "prove": [], "other": [], "begun meanwhile": []}
    go, done = threading.Event(), threading.Event()

    def other() -> None:
        torch.ones(8).sum()
        go.wait(10)
        seen["other"].append(torch.get_num_threads())
        done.set()

    def build(directory: Path, precision: str, progress: Any) -> None:
        seen["build"].append(torch.get_num_threads())
        go.set()
        done.wait(10)
        begun = threading.Thread(target=lambda: seen["begun meanwhile"].append(torch.get_num_threads()))
        begun.start()
        begun.join(10)
        (directory / "weights.bin").write_bytes(b"1")

    def prove(built: Built) -> dict[str, Any]:
        seen["prove"].append(torch.get_num_threads())
        return {"passed": True, "bar": {}}

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        running = threading.Thread(target=other)
        running.start()
        export_component(component("quick", build=build, prove=prove), "fp32", ContentCache(tmp_path))
        running.join(10)
        assert seen == {"build": [1], "prove": [1], "other": [3], "begun meanwhile": [3]}
        assert torch.get_num_threads() == 3
        broken = replace(component("quick", build=lambda *_: 1 / 0), identity=lambda: "1" * 64)
        with pytest.raises(Exception, match="division"):
            export_component(broken, "fp32", ContentCache(tmp_path))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_trace_is_the_same_with_any_number_of_threads() -> None:
    """The voice in the box, whose sums three threads share otherwise than one: its cache's scales come from them."""
    from accelerator.benchmark.demo import open_voice

    engine, traces = open_voice(None, None).engine, []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with on_one_thread():
                traces.append(examples.trace(engine))
    finally:
        torch.set_num_threads(before)
    for name, first in vars(traces[0]).items():
        assert first.tobytes() == getattr(traces[1], name).tobytes(), name
