"""The architecture, checked: who may import whom, which package lives where, and what every module offers."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "accelerator"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    (
        "errors",
        "installation",
        "speech",
        "text",
        "segments",
        "joins",
        "audio",
        "audio_files",
        "hardware",
        "cache",
        "sampling",
        "metrics",
    ),
    ("graph", "native", "tables", "session", "tracing", "proof", "export"),
    ("decode", "prefixes", "sequences", "codebooks", "scheduler", "voices"),
    ("engines",),
    ("tuning", "loader", "routing", "speaking", "pool", "stream", "dispatch", "request", "settings", "optimizer"),
    ("cli", "server", "benchmark", "demo", "__main__"),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
APART = ("reference", "__init__")  # the engine that is wrapped, and the table of public names

# One third-party package, one home. Anything not listed may be imported nowhere.
HOMES = {
    "numpy": None,  # everywhere
    "onnxruntime": ("session",),
    "onnx": ("graph", "tracing", "export"),
    "torch": ("tracing", "engines", "reference", "demo", "benchmark"),
    "numba": ("native",),
    "llvmlite": ("native",),
    "psutil": ("hardware", "metrics"),
    "cpuinfo": ("hardware",),
    "platformdirs": ("cache",),
    "filelock": ("cache",),
    "soundfile": ("audio", "audio_files", "reference"),
    "soxr": ("audio", "audio_files", "reference"),
    "av": ("audio", "audio_files"),
    "safetensors": ("reference", "engines"),
    "typer": ("cli",),
    "click": ("cli",),
    "rich": ("cli",),
    "fish_speech": ("engines",),
    "transformers": ("engines", "benchmark"),
    "normt2s": ("reference",),
    "pocketsphinx": ("reference",),
    "regex": ("segments",),
    "sentencex": ("segments",),
    "llama_cpp": ("benchmark",),
    "gguf": ("benchmark",),
}


def module_of(file: Path) -> str:
    """The top-level module a file belongs to: accelerator/graph/quantize.py -> graph."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(file: Path) -> list[str]:
    parts = ["accelerator", *file.relative_to(PACKAGE).with_suffix("").parts]
    return parts


def imports(file: Path, *, for_types: bool = False) -> Iterator[str]:
    """Absolute names of all modules a file imports, wherever in it; those for type checkers only if asked."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = set()
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                skipped |= {id(child) for statement in node.body for child in ast.walk(statement)}
    package = dotted(file)[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            if (node.level and not node.module) or base == ["accelerator"]:  # from . import a, b
                yield from (".".join([*base, alias.name]) for alias in node.names)
            else:
                yield ".".join(base)


def own(file: Path, **options: bool) -> set[str]:
    """The package's top-level modules a file imports."""
    return {name.split(".")[1] for name in imports(file, **options) if name.startswith("accelerator.")}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_downward(file: Path) -> None:
    module = module_of(file)
    if module in APART:
        return
    assert module in LEVEL, f"{module} has no layer yet: give it one"
    for other in own(file) - {module}:
        if other == "reference":
            assert module in ("engines", "cli", "benchmark", "demo"), "the wrapped engine is an engine like any other"
        elif other not in ("__version__",) and other in LEVEL:
            assert LEVEL[other] <= LEVEL[module], f"{module} (layer {LEVEL[module] + 1}) imports {other}"


def test_modules_of_one_layer_do_not_go_in_circles() -> None:
    uses = {module: set() for module in LEVEL}  # type: dict[str, set[str]]
    for file in FILES:
        if (module := module_of(file)) in uses:
            uses[module] |= own(file) & set(LEVEL) - {module}
    done: set[str] = set()
    while ready := {m for m in uses if m not in done and uses[m] <= done}:
        done |= ready
    assert done == set(uses), f"a circle among {sorted(set(uses) - done)}"


def test_the_reference_engine_knows_nothing_of_the_package() -> None:
    for file in FILES:
        if module_of(file) == "reference":
            assert own(file, for_types=True) <= {"reference"}, file


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_one_third_party_package_has_one_home(file: Path) -> None:
    module = module_of(file)
    for name in {name.split(".")[0] for name in imports(file)} - {"accelerator"} - set(sys.stdlib_module_names):
        assert name in HOMES, f"{name} has no home"
        homes = HOMES[name]
        assert homes is None or module in homes, f"{name} lives in {homes}, not in {module}"


def test_an_engines_own_package_is_imported_within_functions_only() -> None:
    for file in (PACKAGE / "engines").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "fish_speech" for name in names), file


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_is_one_noun(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    assert file.stem not in ("utils", "util", "helpers", "misc", "common")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "a module says what it is"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_what_a_module_offers_exists(file: Path) -> None:
    if file.name == "__main__.py":
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    offers = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    if not offers:
        public = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"]
        assert not public or file.name == "__init__.py", f"no __all__, though it defines {', '.join(public)}"
        return
    (names,) = offers
    assert len(set(names)) == len(names)
    module = importlib.import_module(".".join(dotted(file)).removesuffix(".__init__"))
    for name in names:
        assert hasattr(module, name), name


def test_importing_writes_starts_and_configures_nothing() -> None:
    """No print, no thread, no handler at the top of a module; `print` and progress bars belong to the surface."""
    for file in FILES:
        module = module_of(file)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if LEVEL.get(module, 0) < len(LAYERS) - 1:
            assert not calls & {"print", "logging.basicConfig", "warnings.filterwarnings"}, file
        if LEVEL.get(module, 0) < len(LAYERS) - 1:  # a command line registers its commands
            top = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
            assert not top, f"{file} runs {top} when imported"
