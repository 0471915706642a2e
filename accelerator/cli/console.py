"""Where the commands' words go: results to stdout (text, tables or one JSON document), everything else to stderr."""

from __future__ import annotations

import contextlib
import json as jsonlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import AcceleratorError, CacheError, EngineError, InvalidInput
from . import formats
from .streams import foreign_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from ..export.component import ProgressEvent
    from .progress import Bars

__all__ = ["BROKEN_PIPE", "INTERRUPTED", "Output"]

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE
_PIPED_WIDTH = 120
_ENDLESS = 10_000

_HINTS: tuple[tuple[type[Exception], str], ...] = (
    (InvalidInput, ""),  # the message says what to change
    (EngineError, "`accelerator engines` lists how each is opened, and what it lacks here."),
    (CacheError, "Choose another place with --cache-dir or ACCELERATOR_CACHE; `accelerator doctor` shows it."),
)
_HINT = "Run it again with --debug for the traceback."
_ARGUMENTS = re.compile(
    r"\b(unspeakable|reference_audio|reference_text|max_new_tokens|top_p|top_k|cache_dir)\b(?:='(\w+)')?"
)

logger = logging.getLogger(__name__)


class Output:
    """One command's output. `json`: stdout gets one JSON document; `debug`: errors come with their traceback."""

    def __init__(self, *, json: bool = False) -> None:
        self.json, self.debug = json, False
        self._stdout: Console | None = None
        self._stderr: Console | None = None
        self._handler = _Notes(self)
        self._handler.setFormatter(_OneLine())

    @property
    def stdout(self) -> Console:
        self._stdout = self._stdout or _console(sys.stdout)
        return self._stdout

    @property
    def stderr(self) -> Console:
        self._stderr = self._stderr or _console(sys.stderr)
        return self._stderr

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result, never wrapped; nothing with --json."""
        if not self.json:
            self.stdout.print(text, style=style or None, markup=False, soft_wrap=True)

    def note(self, text: str, style: str = "") -> None:
        """A line beside the result, on stderr."""
        self.stderr.print(text, style=style or None, markup=False, soft_wrap=True)

    def document(self, value: Mapping[str, Any]) -> None:
        """The result as JSON; nothing without --json."""
        if self.json:
            plain, utf8 = formats.plain(value), "utf" in (sys.stdout.encoding or "").lower()
            text = jsonlib.dumps(plain, indent=2, allow_nan=False, ensure_ascii=not utf8)
            if foreign_bytes(text) is not None:  # of a file's name: JSON is UTF-8, and readers undo the escapes
                text = jsonlib.dumps(plain, indent=2, allow_nan=False)
            sys.stdout.write(text + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
        """A table of the result. A column whose name ends in ">" is aligned to the right.

        Where words would have to be broken to fit it into the terminal, each row is a list instead.
        """
        if self.json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        for column in columns:
            table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        any_width = self.stdout.options.update(max_width=_ENDLESS)
        if self.stdout.measure(table, options=any_width).minimum <= self.stdout.width:
            self.stdout.print(table)
            return
        if title:
            self.line(title)
        for name, *values in rows:
            self.rows(list(zip([c.rstrip(">") for c in columns[1:]], values, strict=True)), title=name)

    def rows(self, rows: Sequence[tuple[str, str]], *, title: str = "") -> None:
        """Label and value, line by line."""
        width = max(len(label) for label, _ in rows)
        if title:
            self.line(title, style="bold")
        for label, value in rows:
            self.line(f"  {label:<{width}}  {value}")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Bars | _LogProgress]:
        """A receiver of `ProgressEvent`s: bars where stderr is a terminal, log lines otherwise (with --verbose)."""
        if not self.stderr.is_terminal:
            yield _LogProgress()
            return
        from .progress import bars

        with bars(self.stderr) as receive:
            yield receive

    def failed(self, error: BaseException, exit_code: int = 1, *, hint: str | None = None) -> None:
        """Tell of the error that ends the command: JSON on stdout, or a line and a hint on stderr."""
        ours = isinstance(error, AcceleratorError)
        name = type(error).__name__
        message = _in_options(str(error)) if ours or hint is not None else f"unexpected {name}: {error}"
        if hint is None:
            hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), _HINT)
        if self.debug:
            traceback.print_exception(error, file=sys.stderr)
        if self.json:
            described = {"type": name, "message": message, "hint": hint, "exit_code": exit_code}
            self.document({"error": described})
        else:
            self.note("Error: " + " ".join(message.split()), style="bold red")
            if hint:
                self.note(hint)

    def verbosity(self, level: int) -> None:
        """Show this package's log records from `level` on; with DEBUG also the tracebacks."""
        self.debug = self.debug or level <= logging.DEBUG
        root = logging.getLogger("accelerator")
        root.setLevel(min(level, root.level or logging.WARNING))
        self._handler.setFormatter(
            logging.Formatter("%(levelname)s %(name)s: %(message)s") if self.debug else _OneLine()
        )

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Send this package's log records, and Python's warnings, to stderr while the command runs."""
        root, warned = logging.getLogger("accelerator"), logging.getLogger("py.warnings")
        before = root.level, root.propagate
        root.setLevel(logging.WARNING)
        root.propagate = False
        for log in (root, warned):
            log.addHandler(self._handler)
        warned.addFilter(_ours_only)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            warned.removeFilter(_ours_only)
            for log in (root, warned):
                log.removeHandler(self._handler)
            root.setLevel(before[0])
            root.propagate = before[1]


def _in_options(message: str) -> str:
    """A message of the library, whose arguments are options here: "unspeakable='skip'" is "--unspeakable skip"."""

    def option(match: re.Match[str]) -> str:
        name = "reference" if match[1] == "reference_audio" else match[1].replace("_", "-")
        return f"--{name}" + (f" {match[2]}" if match[2] else "")

    return _ARGUMENTS.sub(option, message)


class _Notes(logging.Handler):
    """Log records become notes, which a progress bar on the same console makes room for."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._out.note(self.format(record))
        except Exception:
            self.handleError(record)


class _OneLine(logging.Formatter):
    """A record as one line: no traceback, which --debug shows."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == "py.warnings":  # "file:line: Category: text\n  source line"
            message = message.splitlines()[0].split(": ", 2)[-1]
        return f"{record.levelname.capitalize()}: {' '.join(message.split())}"


def _ours_only(record: logging.LogRecord) -> bool:
    """Other packages' warnings (tracers have many) are for their developers."""
    return os.sep + "accelerator" + os.sep in str(record.args or record.msg)


class _LogProgress:
    """`Bars` for what is no terminal: each stage is a log record."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, str]] = set()

    def __call__(self, event: ProgressEvent) -> None:
        key = (event.component, event.precision, event.stage)
        if key not in self._seen:
            self._seen.add(key)
            logger.info("%s %s: %s", event.component, event.precision, event.stage)

    def speaking(self, doing: Callable[[], str]) -> None:
        """There is nothing that could be drawn anew."""


def _console(file: Any) -> Console:
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Pipe(file=file, highlight=False)
    if not console.is_terminal:
        console = Pipe(file=file, highlight=False, width=_PIPED_WIDTH)
    return console
