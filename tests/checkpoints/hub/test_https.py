"""Requests to a server on this machine that says whatever the test wants, byte for byte."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from urllib.error import URLError

import pytest

from minift.checkpoints.hub import https
from minift.checkpoints.hub.https import Cut, NoConnection, Site, origin_of, patiently, received
from minift.errors import FormatError

pytestmark = pytest.mark.usefixtures("loopback")

OK = b"HTTP/1.1 200 OK\r\n"
Start = Callable[..., str]


class Raw(socketserver.ThreadingTCPServer):
    """Sends `answers` one after the other, the last one again and again; keeps what was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: tuple[bytes, ...]):
        self.answers, self.asked = list(answers), list[bytes]()

        class Handler(socketserver.StreamRequestHandler):
            server: Raw

            def handle(self) -> None:
                head = b""
                while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
                    head += line
                self.server.asked.append(head)
                answers = self.server.answers
                with contextlib.suppress(OSError):
                    self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Raw]]:
    monkeypatch.setattr(https, "WAITS", (0.0, 0.0))
    started: list[Raw] = []

    def start(*answers: bytes) -> Raw:
        started.append(Raw(answers))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def get(server: Raw, token: str | None = None, path: str = "/x") -> bytes:
    with Site(server.url, token).ask("GET", server.url + path) as answer:
        return b"".join(received(answer, 100))


def redirect(place: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_plain_answer(serve: Callable[..., Raw]) -> None:
    server = serve(OK + b"Content-Length: 5\r\n\r\nhello")
    assert get(server) == b"hello"
    (head,) = server.asked
    assert head.startswith(b"GET /x HTTP/1.1\r\n")
    assert b"Accept-Encoding: identity" in head
    assert b"User-Agent: minift/" in head
    assert b"Authorization" not in head


@pytest.mark.parametrize("status", [204, 400, 404, 500])
def test_every_status_comes_back(serve: Callable[..., Raw], status: int) -> None:
    server = serve(f"HTTP/1.1 {status} What\r\nContent-Length: 0\r\n\r\n".encode())
    with Site(server.url, None).ask("GET", server.url) as answer:
        assert answer.status == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_keep_the_token_at_home(serve: Callable[..., Raw], status: int) -> None:
    away = serve(OK + b"Content-Length: 4\r\n\r\naway")
    home = serve(redirect("/next", status), redirect(away.url + "/file", status))
    assert get(home, "secret") == b"away"
    assert [b"Authorization: Bearer secret" in head for head in home.asked] == [True, True]
    assert home.asked[1].startswith(b"GET /next ")
    assert b"secret" not in away.asked[0]


def test_a_redirect_away_may_be_looked_at(serve: Callable[..., Raw]) -> None:
    home = serve(redirect("/next"), redirect("https://elsewhere.example/file"))
    with Site(home.url, "secret").ask("HEAD", home.url, follow_away=False) as answer:
        assert answer.status == 302
        assert answer.headers["Location"] == "https://elsewhere.example/file"
    assert [head.split()[0] for head in home.asked] == [b"HEAD", b"HEAD"]


@pytest.mark.parametrize(
    "place",
    ["", "http://hub.example/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "https://u@h.example/",
     "https://[", "https://h:99999999/", "https://h.example/a b", "data:,x", "https://h\u00e9.example/"],
)  # fmt: skip
def test_hostile_redirects(serve: Callable[..., Raw], place: str) -> None:
    with pytest.raises(FormatError, match=r"^127\S+ redirect: found") as caught:
        get(serve(redirect(place)))
    assert caught.value.code == "unsafe"
    assert "\n" not in str(caught.value)


def test_https_leads_to_no_http_server_of_this_machine() -> None:
    with pytest.raises(FormatError, match="redirect"):
        https._redirected("https://hub.example/x", "http://127.0.0.1:8080/")
    assert https._redirected("https://a.example/x", "y") == "https://a.example/y"


def test_a_redirect_loop(serve: Callable[..., Raw]) -> None:
    server = serve(redirect("/again"))
    with pytest.raises(FormatError, match="at most 5"):
        get(server)
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://hub.example/a?b", ("https", "hub.example", 443)),
        ("https://HUB.example:444", ("https", "hub.example", 444)),
        ("http://127.0.0.1:80/x", ("http", "127.0.0.1", 80)),
        ("http://[::1]", ("http", "::1", 80)),
        ("http://localhost", ("http", "localhost", 80)),
        ("http://127.0.0.1.hub.example", None),
        ("http://hub.example", None),
        ("https://user:pass@hub.example", None),
        ("https://hub.example\n", None),
        ("//hub.example", None),
        ("", None),
    ],
)
def test_origins(url: str, expected: object) -> None:
    assert origin_of(url) == expected


@pytest.mark.parametrize(
    "raw",
    [b"", b"\r\n" * 100, b"garbage\r\n\r\n", OK + b"A: b\r\n" * 200 + b"\r\n",
     OK + b"X: " + b"x" * 100_000, b"HTTP/1.1 99999 OK\r\n\r\n",
     OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_no_http(serve: Callable[..., Raw], raw: bytes) -> None:
    with pytest.raises(Cut) as caught:
        get(serve(raw))
    assert "\n" not in str(caught.value)


def test_a_chunk_of_minus_one_does_not_fill_the_memory(serve: Callable[..., Raw]) -> None:
    body = OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + b"x" * 1_000_000
    assert get(serve(body)) == b"x" * 100


def test_a_lost_connection_is_asked_again(serve: Callable[..., Raw]) -> None:
    server = serve(b"", b"", OK + b"Content-Length: 2\r\n\r\nok")
    assert patiently(lambda: get(server)) == b"ok"
    server = serve(b"")
    with pytest.raises(NoConnection, match=r"^no connection to 127\S+: Remote end closed"):
        patiently(lambda: get(server))
    assert len(server.asked) == 3


def test_patience_begins_anew_where_bytes_were_gained() -> None:
    calls: list[int] = []

    def act() -> None:
        calls.append(1)
        cut = Cut("lost")
        cut.moved = https.MOVED if len(calls) < 10 else 1
        raise cut

    https.WAITS, before = (0.0, 0.0), https.WAITS
    try:
        with pytest.raises(NoConnection, match="lost; what has arrived is kept, call again"):
            patiently(act)
    finally:
        https.WAITS = before
    assert len(calls) == 11


def test_a_certificate_that_is_not_accepted() -> None:
    error = ssl.SSLCertVerificationError(1, "")
    error.verify_message = "self-signed certificate"
    cut = https._failed("hub.example", URLError(error))
    assert str(cut).startswith("hub.example: self-signed certificate; behind a proxy")
    assert not cut.again


def test_the_token_is_never_shown() -> None:
    assert "secret" not in repr(Site("https://hub.example", "secret"))
