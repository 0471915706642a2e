"""The address of a server of voices, read without ever repeating it: it may contain a password."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from ..errors import InvalidOption

__all__ = ["Place", "is_server", "parsed", "whole_seconds"]

_SCHEMES = ("redis", "rediss", "unix")
_PORT = 6379
_OWN = ("ttl", "timeout", "wait")
_PASSED_ON = (
    "db",
    "password",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "username",
)
_LONGEST_S = 100 * 365 * 86_400
_FORM = (
    "write redis://user:password@host:6379/0?ttl=86400, rediss:// or unix:///path, with whatever is no letter or digit "
    "of a password as %2F and the like"
)


@dataclass(frozen=True)
class Place:
    """A server. name: the address without secrets. url: for redis-py. options: our own, by name."""

    name: str
    url: str = field(repr=False)
    options: Mapping[str, Any]


def is_server(text: str) -> bool:
    """Whether a text is meant as an address, and not as a directory."""
    return "://" in text or re.match(rf"({'|'.join(_SCHEMES)}):", text, re.IGNORECASE) is not None


def parsed(url: str) -> Place:
    """Raises InvalidOption, whose message has nothing of the address in it."""
    place = _parsed(url)
    if isinstance(place, str):
        raise InvalidOption(f"the address of voices {place}: {_FORM}")
    return place


def whole_seconds(name: str, value: Any) -> int:
    """A time to live, rounded up to whole seconds as Redis has them. Raises InvalidOption."""
    seconds = _number(value)
    if seconds is None or not 0 < seconds <= _LONGEST_S:
        raise InvalidOption(f"{name} must be a number of seconds above 0 and at most {_LONGEST_S} (100 years), or None")
    return math.ceil(seconds)


def _parsed(url: str) -> Place | str:
    """The place, or what is wrong. Errors of the standard library, which quote the address, do not leave this."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
        asked = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        return "cannot be read"
    if parts.scheme not in _SCHEMES:
        return f"is not one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
    query = dict(asked)
    if len(query) < len(asked) or not {*query} <= {*_OWN, *_PASSED_ON} or parts.fragment:
        return f"has an option twice, or another than {', '.join((*_OWN, *_PASSED_ON))}"
    database = query.get("db", "") if parts.scheme == "unix" else query.get("db", parts.path.strip("/"))
    found = parts.path.startswith("/") and not parts.hostname if parts.scheme == "unix" else bool(parts.hostname)
    if not found or not re.fullmatch(r"\d{0,9}", database):
        return "has no host, or a database that is no number"
    options = {name: query.pop(name) for name in _OWN if name in query}
    numbers = {name: _number(text) for name, text in options.items()}
    if options.get("ttl", "").lower() == "none":
        numbers["ttl"] = None
    elif wrong := [name for name, number in numbers.items() if number is None]:
        return f"has a {wrong[0]} that is no number"
    return Place(_name(parts, port, database), urlunsplit(parts._replace(query=urlencode(query))), numbers)


def _name(parts: SplitResult, port: int, database: str) -> str:
    if parts.scheme == "unix":
        return f"unix://{unquote(parts.path)}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port}/{database or 0}"


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
