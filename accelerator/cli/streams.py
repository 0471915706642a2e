"""The standard streams of a command: what cannot be written is an error of ours on stdout, and is dropped on stderr.

A closed stream becomes an empty one. A character that a terminal lacks becomes a question mark, and a byte of a file's
name that is not UTF-8 stays what it is.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any

__all__ = ["Unprintable", "foreign_bytes", "safe_streams", "silence"]

_LACKING = "accelerator-lacking"  # the name of `_in_its_place` among codecs' error handlers


class Unprintable(OSError):
    """stdout cannot be written."""


class _Raw(io.RawIOBase):
    """The file below a standard stream, so that whoever writes to that, in text or bytes, meets the same errors."""

    def __init__(self, own: Any, *, optional: bool) -> None:
        """optional: what cannot be written is dropped."""
        self._own, self._optional = own, optional

    def write(self, data: Any) -> int | None:
        try:
            written: int | None = self._own.write(data)
            return written
        except BrokenPipeError as error:
            raise BrokenPipeError(error.strerror) from error  # without a number, at which click ends the process by 1
        except OSError as error:
            if self._optional:
                return len(data)
            raise Unprintable(error.errno, error.strerror) from error

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._own.fileno())

    def isatty(self) -> bool:
        return bool(self._own.isatty())


def safe_streams() -> None:
    """Replace the process's standard streams, where they are files."""
    codecs.register_error(_LACKING, _in_its_place)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _safe(stream, optional=name == "stderr"))


def silence(stream: Any) -> None:
    """What a stream still holds goes nowhere, since Python would tell of it at exit."""
    with contextlib.suppress(OSError, ValueError):  # not a real file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def foreign_bytes(text: str) -> tuple[int, int] | None:
    """Where a word of the command line is not in the system's encoding: (position, byte), of the first; or None."""
    return next(((at, ord(each) & 0xFF) for at, each in enumerate(text) if _is_byte(each)), None)


def _safe(stream: io.TextIOWrapper, *, optional: bool) -> io.TextIOWrapper:
    raw = getattr(stream.buffer, "raw", stream.buffer)  # there is no buffer between under `python -u`
    if not isinstance(raw, io.RawIOBase) or isinstance(raw, _Raw):
        stream.reconfigure(errors=_LACKING)
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(raw, optional=optional)),
        encoding=stream.encoding,
        errors=_LACKING,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _in_its_place(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return b"".join(bytes([ord(each) & 0xFF]) if _is_byte(each) else b"?" for each in lacking), error.end


def _is_byte(character: str) -> bool:
    """Whether it stands for a byte that could not be decoded (PEP 383)."""
    return "\udc80" <= character <= "\udcff"
