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

# Rooms, and the files beside them, from the ground up: a file may import what stands in a line before its own.
LAYERS = (
    ("errors", "installation"),
    ("hardware", "text"),
    ("cache", "metrics", "runtime"),
    ("audio", "export", "voices"),
    ("speech",),
    ("kernels",),
    ("inference", "codec"),
    ("parts",),
    ("engines",),
    ("pipeline",),
    ("optimizer",),
    ("benchmark", "server"),
    ("cli",),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
APART = ("reference", "__init__")  # the engine that is wrapped, and the table of public names

# One third-party package, one home. Anything not listed may be imported nowhere.
HOMES = {
    "numpy": None,  # everywhere
    "onnxruntime": ("runtime",),
    "openvino": ("runtime",),
    "onnx": ("export",),
    "torch": ("codec", "export", "runtime", "parts", "engines", "reference", "benchmark"),
    "numba": ("kernels",),
    "llvmlite": ("kernels",),
    "psutil": ("hardware", "metrics"),
    "cpuinfo": ("hardware",),
    "platformdirs": ("cache",),
    "filelock": ("cache",),
    "soundfile": ("audio", "reference"),
    "soxr": ("audio",),
    "av": ("audio",),
    "safetensors": ("codec", "parts", "reference", "engines", "voices"),
    "redis": ("voices",),
    "typer": ("cli",),
    "click": ("cli",),
    "rich": ("cli",),
    "fish_speech": ("engines", "benchmark"),
    "tokenizers": ("engines",),
    "transformers": ("engines", "benchmark"),
    "normt2s": ("reference",),
    "pocketsphinx": ("reference",),
    "regex": ("text",),
    "sentencex": ("text",),
    "moonshine_cpp": ("benchmark",),
    "faster_whisper": ("benchmark",),
    "resemblyzer": ("benchmark",),
    "llama_cpp": ("benchmark",),
    "gguf": ("benchmark",),
}
SURFACES = ("benchmark", "cli", "__main__")  # what may print
ABOVE = ("kernels/check.py", "engines/spark_tts/onnx.py")  # stand above all rooms, though in one: none imports them


def dotted(file: Path) -> list[str]:
    return ["accelerator", *file.relative_to(PACKAGE).with_suffix("").parts]


MODULES = {".".join(dotted(file)).removesuffix(".__init__"): file for file in FILES}


def module_of(file: Path) -> str:
    """The top-level module a file belongs to: accelerator/graph/quantize.py -> graph."""
    place = file.relative_to(PACKAGE)
    return "cli" if place.as_posix() in ABOVE else place.parts[0].removesuffix(".py")


def statements(file: Path, *, for_types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a file, wherever in it; those for type checkers only if asked."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = set()
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                skipped |= {id(child) for statement in node.body for child in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in skipped:
            yield node


def imports(file: Path, *, for_types: bool = False) -> Iterator[str]:
    """Absolute names of all modules a file imports; of `from . import a`, `a` and not the package."""
    package = dotted(file)[:-1]
    for node in statements(file, for_types=for_types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        name = ".".join([*base, *filter(None, [node.module])])
        for alias in node.names:
            yield inner if (inner := f"{name}.{alias.name}") in MODULES else name


def own(file: Path, **options: bool) -> set[str]:
    """The package's top-level modules a file imports."""
    return {name.split(".")[1] for name in imports(file, **options) if name.startswith("accelerator.")}


def circles(uses: dict[str, set[str]]) -> set[str]:
    """What is left when everything that rests on settled ground has been taken away."""
    done: set[str] = set()
    while ready := {name for name in uses if name not in done and uses[name] <= done}:
        done |= ready
    return set(uses) - done


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_file_imports_only_downward(file: Path) -> None:
    module = module_of(file)
    if module in APART:
        return
    assert module in LEVEL, f"{module} has no layer yet: give it one"
    for other in own(file) - {module}:
        if other == "reference":
            assert module in ("engines", "cli", "benchmark"), "the wrapped engine is an engine like any other"
        elif other in LEVEL:
            assert LEVEL[other] < LEVEL[module], f"{module} (layer {LEVEL[module] + 1}) imports {other}"


def test_no_circle_among_files() -> None:
    """Not inside a folder either, and not through a function's own imports; what only type checkers read is free."""
    left = circles({name: set(imports(file)) & set(MODULES) - {name, "accelerator"} for name, file in MODULES.items()})
    assert not left, f"circles among, or files above them: {sorted(left)}"


def test_of_the_package_the_reference_engine_knows_how_recordings_are_read() -> None:
    for file in FILES:
        if module_of(file) == "reference":
            reads = file == PACKAGE / "reference" / "audio.py"
            assert own(file, for_types=True) <= ({"reference", "audio"} if reads else {"reference"}), file


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
        if module not in SURFACES:
            assert not calls & {"print", "logging.basicConfig", "warnings.filterwarnings"}, file
        if module not in SURFACES:  # a command line registers its commands
            top = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
            assert not top, f"{file} runs {top} when imported"
