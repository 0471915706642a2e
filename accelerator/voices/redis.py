"""Voices on a Redis server, which machines may share. The package redis is imported here only, and on use.

A server that is dead, slow, full, read-only or wrong costs a request `timeout` seconds at most, all that it asks of the
server together; what cannot be stored within that is stored while the request goes on. After a failure the server is
left alone for a second, and twice as long each time, up to a minute. Each kind of failure is said once.

Nothing that a server or the client library says is repeated, since it may contain the password: reasons are our words.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import InvalidOption
from ..hardware.forks import renewed_in_children
from ..installation import install_command
from .bounded import Bounded
from .place import Place, parsed, whole_seconds

__all__ = ["RedisVoices"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

TTL_S = 30 * 86_400
TIMEOUT_S = 0.05
WAIT_S = 10.0
_REST_S, _LONGEST_REST_S = 1.0, 60.0
_CLAIM_MS = 30_000  # until a claim ends by itself, when its process was killed
_POLLS_S = (0.005, 0.1)  # between looks whether another process is done: at first, and at most
_AT_ONCE = 16
_WAITED = 0.9  # of the time-out; the rest is what beginning and ending a call take
_PREFIX = "accelerator:voice:"
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


class RedisVoices:
    """A `VoiceStore` on a server. Safe for any number of threads, and in forked children.

    client: a `redis.Redis` of the user's own, with the settings that it needs; one that decodes its answers will do.
    `from_url` makes one with a pool of connections. ttl: seconds that a voice is kept, rounded up to whole ones; None
    leaves that to the server. timeout: seconds that a request waits for the server, in all. wait: seconds, at most, to
    wait for another process that is encoding the same voice; then it is encoded here. Raises InvalidOption.
    """

    def __init__(
        self, client: Any, *, ttl: float | None = TTL_S, timeout: float = TIMEOUT_S, wait: float = WAIT_S
    ) -> None:
        execute = getattr(client, "execute_command", None)
        if not callable(execute) or inspect.iscoroutinefunction(execute):
            raise InvalidOption(f"voices are kept by a redis.Redis or its URL, not by a {type(client).__name__}")
        self._ttl = None if ttl is None else whole_seconds("ttl", ttl)
        self._timeout, self._wait = timeout, wait
        for name, seconds, least in (("timeout", timeout, 0.001), ("wait", wait, 0.0)):
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not least <= seconds <= 600:
                raise InvalidOption(f"{name} must be a number of seconds from {least:g} to 600")
        self._client, self._name, self._own = client, _name_of(client), False
        self._calls, self._budget, self._told = Bounded(_AT_ONCE), threading.local(), set[str]()
        self._rests_until = self._rest = 0.0
        self._forked()
        renewed_in_children(self)

    def _forked(self) -> None:
        """In a forked child nobody encodes."""
        self._lock = threading.Lock()  # of the rest, and of
        self._claims: dict[str, str] = {}  # of this process, by key

    @classmethod
    def from_url(
        cls, url: str, *, ttl: float | None = TTL_S, timeout: float = TIMEOUT_S, wait: float = WAIT_S
    ) -> RedisVoices:
        """redis://[[user]:password@]host[:port][/database][?ttl=seconds&timeout=seconds&wait=seconds].

        Also rediss:// (TLS) and unix:///path?db=0. ttl=none leaves the time to live to the server. What the URL says
        counts more than the arguments. Raises InvalidOption, also where redis-py is not installed.
        """
        place = parsed(url)
        options: dict[str, Any] = {"ttl": ttl, "timeout": timeout, "wait": wait, **place.options}
        store = cls(_client(place, options["timeout"]), **options)
        store._name, store._own = place.name, True
        return store

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<RedisVoices {self._name}>"

    def get(self, key: str) -> bytes | None:
        """The value, or None, within `timeout`; what is left of that is for the same thread's `claim` and `put`."""
        self._budget.left = _WAITED * self._timeout
        return self._asked(lambda: self._read(key))

    def put(self, key: str, value: bytes) -> None:
        """Store it; goes on by itself if it takes longer than what is left of the time."""
        with self._lock:
            token = self._claims.pop(key, None)
        lives = () if self._ttl is None else ("EX", self._ttl)

        def store() -> None:
            try:
                self._client.execute_command("SET", _PREFIX + key, value, *lives)
            finally:  # in this order, so that who waits finds either
                self._release(key, token)

        self._asked(store, ends=False)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bytes | None]:
        token = uuid.uuid4().hex
        value, mine = self._claimed(key, token)
        if mine:
            with self._lock:
                self._claims[key] = token
        try:
            yield value
        finally:
            with self._lock:
                unused = self._claims.pop(key, None) if mine else None
            if unused is not None:  # nothing was put
                self._asked(lambda: self._release(key, unused), ends=False)
            self._budget.left = _WAITED * self._timeout  # of the next request

    def problem(self) -> str | None:
        """Why it cannot be used now, in a few words; None if it answers."""
        try:
            self._calls.call(lambda: self._client.execute_command("PING"), self._timeout)
        except Exception as error:  # whatever the library raises
            return self._reason(error)
        return None

    def _claimed(self, key: str, token: str) -> tuple[bytes | None, bool]:
        """The value, if there is one, and whether the claim is ours."""
        deadline, pause = time.monotonic() + self._wait, _POLLS_S[0]
        while True:
            answer = self._asked(lambda: self._claim_once(key, token))
            if answer is None:
                return None, False
            value, mine = answer
            if value is not None or mine is not False:
                return value, mine is True
            if time.monotonic() >= deadline:
                self._failed(f"for {self._wait:g} s it said that another process encodes a voice", rests=True)
                return None, False
            time.sleep(pause)
            pause = min(2 * pause, _POLLS_S[1])
            self._budget.left = _WAITED * self._timeout  # from here on it is the other process that is waited for

    def _claim_once(self, key: str, token: str) -> tuple[bytes | None, bool | None]:
        """As `_claimed`; whether the claim is ours is None where nobody can make one, as on a server that is full."""
        import redis

        mine: bool | None
        try:
            mine = bool(self._client.execute_command("SET", f"{_PREFIX}{key}:claim", token, "NX", "PX", _CLAIM_MS))
        except redis.ResponseError as error:
            self._failed(self._reason(error), rests=False)
            mine = None
        return self._read(key), mine

    def _read(self, key: str) -> bytes | None:
        # As redis-py itself reads what DUMP answers: a client that decodes its answers would fail on what is no text.
        value: bytes | None = self._client.execute_command("GET", _PREFIX + key, NEVER_DECODE=True)
        return value

    def _release(self, key: str, token: str | None) -> None:
        if token is not None:
            self._client.execute_command("EVAL", _RELEASE, 1, f"{_PREFIX}{key}:claim", token)

    def _asked(self, function: Callable[[], Answer], *, ends: bool = True) -> Answer | None:
        """What it answers within what is left of the time, None where it fails; at once while the server rests.

        ends: whether taking longer is a failure; otherwise the call goes on by itself.
        """
        if time.monotonic() < self._rests_until:
            return None

        def guarded() -> Answer | None:
            import redis

            try:
                answer = function()
            except Exception as error:  # whatever the library raises; also when nobody waits any more
                self._failed(self._reason(error), rests=not isinstance(error, redis.ResponseError))
                return None
            with self._lock:
                self._rest = 0.0
            return answer

        start, left = time.monotonic(), float(getattr(self._budget, "left", _WAITED * self._timeout))
        try:
            return self._calls.call(guarded, max(left, 0.0))
        except TimeoutError as error:
            if ends:
                self._failed(self._reason(error), rests=True)
            return None
        finally:
            self._budget.left = left - (time.monotonic() - start)

    def _failed(self, reason: str, *, rests: bool) -> None:
        """rests: whether it is better not asked again soon, since it does not answer, or not as it should."""
        now = time.monotonic()
        with self._lock:
            if rests and now < self._rests_until:
                return  # with others, or ended because of them
            if rests:
                self._rest = min(2 * self._rest, _LONGEST_REST_S) or _REST_S
                self._rests_until = now + self._rest
            first = reason not in self._told
            self._told.add(reason)
        if first:
            logger.warning("Voices cannot be shared by %s now: %s. They are encoded here; said once.", self, reason)
        if rests and self._own:
            with contextlib.suppress(Exception):  # ends the calls that still wait: a server may drip for ever
                self._client.connection_pool.disconnect()

    def _reason(self, error: Exception) -> str:
        """In our own words."""
        import redis

        late = f"it does not answer within {self._timeout * 1e3:g} ms"
        reasons: tuple[tuple[type[BaseException], str], ...] = (
            (TimeoutError, late),
            (redis.exceptions.TimeoutError, late),
            (redis.exceptions.AuthenticationError, "it asks for another name or password"),
            (redis.exceptions.AuthorizationError, "it asks for another name or password"),
            (redis.exceptions.BusyLoadingError, "it is still loading its data"),
            (redis.exceptions.ConnectionError, "it cannot be reached"),
            (redis.exceptions.OutOfMemoryError, "it is full (maxmemory)"),
            (redis.exceptions.ReadOnlyError, "it is read-only"),
            (redis.exceptions.NoPermissionError, "it does not permit what is needed (GET, SET, EVAL)"),
            (redis.exceptions.ResponseError, "it refuses what is needed (GET, SET, EVAL)"),
        )
        other = f"its answer cannot be understood ({type(error).__name__})"
        return next((reason for kind, reason in reasons if isinstance(error, kind)), other)


def _client(place: Place, timeout: Any) -> Any:
    """A client with a pool of connections that never tries again by itself."""
    if importlib.util.find_spec("redis") is None:
        raise InvalidOption(f"voices need redis-py to be kept on a server: {install_command('redis')}")
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # Version 2 of the protocol begins with fewer questions, and has all that is needed.
    pool = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "max_connections": _AT_ONCE, "protocol": 2}
    return redis.Redis.from_url(place.url, retry=Retry(NoBackoff(), 0), **pool)


def _name_of(client: Any) -> str:
    """Where a client leads, without its secrets."""
    given = getattr(getattr(client, "connection_pool", None), "connection_kwargs", {})
    if "path" in given:
        return f"unix://{given['path']}"
    if "host" in given:
        return f"redis://{given['host']}:{given.get('port', 6379)}/{given.get('db', 0)}"
    return f"a {type(client).__name__}"
