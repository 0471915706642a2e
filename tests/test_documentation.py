"""The Python blocks of README and docs run as they stand, but for those that say why they do not; links lead somewhere.

A block's note is a comment before it: "fragment" is not run, "needs: PACKAGE" only where there is that package, "file:
NAME" is a file that the page's other blocks find (its tests are run, too), and "installed" runs as if the page's
pyproject.toml had been installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "onnx_cache/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>python|toml)\n(?P<code>.*?)```", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
LONGEST = 120
HUB = "facebook/mms-tts-eng"  # stands for a folder of random weights here: there may be no network
FRAGMENT, INSTALLED = "fragment", "installed"


class Block(NamedTuple):
    page: Path
    line: int
    note: str
    kind: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def runs(self) -> bool:
        is_test = self.file is not None and self.file.startswith("test_")
        return self.kind == "python" and self.note != FRAGMENT and (self.file is None or is_test)


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start("code")].count("\n") + 1
            found.append(Block(page, line, match["note"] or "", match["kind"], match["code"]))
    return found


def test_every_python_block_is_found() -> None:
    python = [block for block in blocks() if block.kind == "python"]
    assert sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES) == len(python) > 5
    for block in python:
        known = block.note in ("", FRAGMENT, INSTALLED) or block.note.startswith(("needs: ", "file: "))
        assert known, f"{block.name} is marked {block.note!r}"


def outside_code(page: Path) -> list[tuple[int, str]]:
    """The lines of a page that are in no block of code, numbered."""
    found, within = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            within = not within
        elif not within:
            found.append((number, line))
    return found


def links(page: Path) -> list[tuple[str, str]]:
    """(page or "", anchor or "") of each link that stays within the project."""
    text = "\n".join(line for _, line in outside_code(page))
    targets = [match["target"].partition("#") for match in LINK.finditer(text)]
    return [(target, anchor) for target, _, anchor in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_prose_is_too_long(page: Path) -> None:
    lines = [each for each in outside_code(page) if not each[1].startswith("|")]  # a row of a table cannot be broken
    assert [f"line {number}: {len(line)}" for number, line in lines if len(line) > LONGEST] == []


def anchors(page: Path) -> set[str]:
    """What `page.md#...` may name: its headings as GitHub spells them."""
    headings = (line.lstrip("#") for _, line in outside_code(page) if re.match(r"#{1,6} ", line))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    dead = []
    for target, anchor in links(page):
        other = page.parent / target if target else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            dead.append(f"{target}#{anchor}")
    assert dead == []


def test_every_document_is_reached_from_the_index() -> None:
    seen, waiting = set[Path](), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        waiting += [(page.parent / target).resolve() for target, _ in links(page) if target.endswith(".md")]
    assert {page for page in PAGES if ROOT / "docs" in page.parents} - seen == set()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VITS of random weights as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    folder = tmp_path_factory.mktemp("mms")
    letters = " abcdefghijklmnopqrstuvwxyz'-"
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch will do without one day
        import torch

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "ffn_dim": 48, "flow_size": 16, "duration_predictor_filter_channels": 32}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "prior_encoder_num_wavenet_layers": 2}
        upsampling = {"upsample_initial_channel": 32, "upsample_rates": [4, 4], "upsample_kernel_sizes": [8, 8]}
        config = transformers.VitsConfig(vocab_size=len(letters), **sizes, **layers, **upsampling)
        model = transformers.VitsModel(config).eval()
        model.decoder.conv_post.weight.data.mul_(0.05)  # else it clips
        model.save_pretrained(folder)
        transformers.VitsTokenizer(
            str(folder / "vocab.json"), phonemize=False, is_uroman=False, pad_token=" ", unk_token=" "
        ).save_pretrained(folder)
    return folder


def lay_out(page: Path, folder: Path, *, installed: bool) -> None:
    """The page's files into a folder; what its pyproject.toml would install becomes known to importlib.metadata."""
    files = {block.file: block.code for block in blocks() if block.page == page and block.file is not None}
    for name, code in files.items():
        (folder / name).write_text(code, encoding="utf-8")
    if installed:
        tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
        project = tomllib.loads(files["pyproject.toml"])["project"]
        meta = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (meta / "entry_points.txt").write_text("\n".join(lines) + "\n")


def marked(block: Block) -> tuple[pytest.MarkDecorator, ...]:
    """Blocks of these pages begin with exports of a whole engine, the voice in the box or a VITS."""
    return (pytest.mark.slow,) if block.page.name in ("README.md", "getting-started.md") else ()


@pytest.mark.parametrize(
    "block", [pytest.param(each, id=each.name, marks=marked(each)) for each in blocks() if each.runs]
)
def test_a_block_runs(block: Block, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code, needed = block.code, block.note.removeprefix("needs: ") if block.note.startswith("needs: ") else None
    if needed == "fish-speech":
        for variable in ("ACCELERATOR_FISH_SPEECH_ROOT", "ACCELERATOR_FISH_SPEECH_CHECKPOINT"):
            if not os.environ.get(variable):
                pytest.skip(f"needs the engine: set {variable}")
        code = code.replace("checkpoints/openaudio-s1-mini", os.environ["ACCELERATOR_FISH_SPEECH_CHECKPOINT"])
    elif needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}, which is not installed")
    if HUB in code:
        code = code.replace(HUB, str(request.getfixturevalue("checkpoint")))
    lay_out(block.page, tmp_path, installed=block.note == INSTALLED)
    paths = [str(ROOT), os.environ.get("ACCELERATOR_FISH_SPEECH_ROOT", ""), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    run = ["-m", "pytest", "-q", block.file] if block.file else ["-c", code]
    done = subprocess.run(
        [sys.executable, *run], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{block.name} fails:\n{done.stdout}\n{done.stderr}"
    for written in re.findall(r'save\("([^"]+)"\)', code):
        assert (tmp_path / written).stat().st_size > 1000
