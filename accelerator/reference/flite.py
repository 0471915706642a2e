"""flite, whose voices the trained one learnt: what it says is the yardstick, and was the corpus."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import ReferenceEngineError

__all__ = ["flite"]


def flite(text: str, speaker: str, path: Path) -> None:
    """Speak into a wav file, atomically. Raises ReferenceEngineError if flite is missing or fails."""
    if shutil.which("flite") is None:
        raise ReferenceEngineError("there is no flite: install the Debian package flite")
    temporary = path.with_suffix(f".{os.getpid()}.tmp.wav")
    done = subprocess.run(
        ["flite", "-voice", speaker, "-t", text, "-o", str(temporary)], capture_output=True, check=False
    )
    if done.returncode or not temporary.is_file():
        raise ReferenceEngineError(f"flite failed on {text!r}: {done.stderr.decode(errors='replace')}")
    os.replace(temporary, path)
