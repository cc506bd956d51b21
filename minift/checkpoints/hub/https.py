"""Asking a server over https with the standard library: redirects, a token, and lost connections.

A Site is one server and the token for it. Every answer comes back as it is, a 404 too; only
redirects are followed, over https alone, and the token never leaves the site. Plain http is for a
server on this machine (tests, a mirror in a container).
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit

from minift import __version__
from minift.errors import ConfigError, FormatError, one_line

TIMEOUT = 30.0  # seconds without a byte
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before asking again
MOVED = 16 << 20  # so many bytes before a connection is lost, and the waits begin anew
HOPS, CHUNK = 5, 1 << 20
REDIRECTS = (301, 302, 303, 307, 308)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Result = TypeVar("Result")


class NoConnection(ConfigError):
    """A server could not be reached; what is in the cache may still do."""


class Cut(Exception):
    """A connection that failed. `again`: asking once more may help; `moved`: bytes gained by it."""

    moved = 0

    def __init__(self, text: str, *, again: bool = True):
        super().__init__(text)
        self.again = again


@dataclass(frozen=True, repr=False)  # no repr: it would show the token
class Site:
    """Where to ask, and as whom."""

    endpoint: str
    token: str | None

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).netloc

    @contextlib.contextmanager
    def ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        *,
        follow_away: bool = True,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request after all redirects, or the one that leads to another host."""
        for _ in range(HOPS + 1):
            origin = origin_of(url)
            request = urllib.request.Request(url, method=method, headers=headers or {})
            request.add_header("User-Agent", f"minift/{__version__}")
            # TRAP: the token is for the hub. Where the bytes come from is none of its business.
            if self.token and origin == origin_of(self.endpoint):
                request.add_header("Authorization", f"Bearer {self.token}")
            host = urlsplit(url).netloc
            try:
                answer = _opener(urlsplit(url).hostname in _LOOPBACK).open(request, timeout=TIMEOUT)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _failed(host, error) from error
            with answer:
                if answer.status not in REDIRECTS:
                    yield answer
                    return
                url = _redirected(url, answer.headers.get("Location", ""))
                if origin_of(url) != origin and not follow_away:
                    yield answer
                    return
        allowed = f"at most {HOPS}"
        raise FormatError(host, "redirects", "more", allowed, "limit")


def _redirected(url: str, place: str) -> str:
    """Where a redirect from `url` leads; never from https to this machine's own http servers."""
    with contextlib.suppress(ValueError):
        target = urljoin(url, place)
        there, here = origin_of(target), origin_of(url)
        if place and there and here and (there[0] == "https" or here[0] == "http"):
            return target
    raise FormatError(urlsplit(url).netloc, "redirect", place, "an https address", "unsafe")


def origin_of(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is never asked: plain http, but from this machine."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    host = parts.hostname or ""
    safe = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    return (parts.scheme, host, port) if safe and host and "@" not in parts.netloc else None


@functools.cache
def _opener(local: bool) -> urllib.request.OpenerDirector:
    """http and https through the proxies of the environment; no other scheme, nothing followed.

    An OpenerDirector without its usual handlers gives every answer back as it came.
    """
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler({} if local else None))
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPSHandler())
    return opener


def _failed(host: str, error: Exception) -> Cut:
    """A connection that was never there, or was lost, in words."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        todo = "behind a proxy that reads along, SSL_CERT_FILE names its certificate"
        return Cut(f"{host}: {one_line(reason.verify_message)}; {todo}", again=False)
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    # A cut may heal in a second; a name that is not found and a refused connection rarely do.
    lost = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    again = isinstance(reason, (*lost, http.client.HTTPException))
    return Cut(f"no connection to {host}: {one_line(text)}", again=again)


def received(answer: http.client.HTTPResponse, count: int) -> Iterator[bytes]:
    """At most `count` bytes of an answer, as they arrive; fewer where it ends."""
    moved = 0
    while moved < count:
        try:
            # TRAP: of a chunked answer whose chunk is "-1" long, read(n) reads without an end, and
            # read1(n) gives a whole buffer.
            chunk = answer.read1(min(count - moved, CHUNK))[: count - moved]
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Cut(f"the connection was lost: {one_line(str(error))}") from error
        if not chunk:
            return
        moved += len(chunk)
        yield chunk


def patiently(act: Callable[[], Result]) -> Result:
    """Call until it goes through; NoConnection, one line, when the waits are used up."""
    waits = iter(WAITS)
    while True:
        try:
            return act()
        except Cut as cut:
            if cut.moved >= MOVED:
                waits = iter(WAITS)
            wait = next(waits, None) if cut.again else None
            if wait is None:
                kept = "; what has arrived is kept, call again to go on" if cut.moved else ""
                raise NoConnection(f"{cut}{kept}") from cut
            time.sleep(wait)
