"""How this package was installed, and so the command that installs more of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from pathlib import Path

__all__ = ["DISTRIBUTION", "checkout", "install_command"]

DISTRIBUTION = "accelerator-tts"  # `accelerator` and other names near it belong to other projects


def checkout(directory: Path | None = None) -> Path | None:
    """The source checkout whose package lies in `directory`/accelerator (default: this package's), or None.

    An installed package lies in site-packages, beside which no pyproject.toml of ours is found.
    """
    directory = directory or Path(__file__).resolve().parents[1]
    try:
        project = (directory / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return directory if re.search(rf'^name\s*=\s*["\']{DISTRIBUTION}["\']', project, re.MULTILINE) else None


def install_command(extra: str = "") -> str:
    """The command that installs this package again from where it came, with an extra of its dependencies.

    A checkout: `pip install -e ".[quality]"`, with its path unless it is the working directory. What pip was given by
    address (a wheel's file, a directory, a repository): that address, or a checkout if what was there is gone, since
    no registry has the package yet. Otherwise the distribution's name.
    """
    extras = f"[{extra}]" if extra else ""
    if (source := checkout()) is not None:
        return f'pip install -e "{_place(source)}{extras}"'
    origin = _origin()
    if origin is None:
        return f'pip install "{DISTRIBUTION}{extras}"'
    if origin.startswith("file:") and not _exists(origin):
        return f'pip install ".{extras}" in a checkout of {DISTRIBUTION}'
    return f'pip install "{DISTRIBUTION}{extras} @ {origin}"'


def _place(source: Path) -> str:
    return "." if source == Path(os.path.realpath(os.getcwd())) else str(source)


def _origin() -> str | None:
    """The address that pip was given and recorded (PEP 610)."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        record = json.loads(text) if text else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    address = record.get("url")
    if not isinstance(address, str):
        return None
    vcs = record.get("vcs_info")
    return f"{vcs['vcs']}+{address}@{vcs['commit_id']}" if vcs else address


def _exists(address: str) -> bool:
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return os.path.exists(url2pathname(urlsplit(address).path))
