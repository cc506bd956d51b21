"""The model hub, played by two servers on this machine: one answers, one sends the large files.

The hashes of the files are what `git hash-object` and `sha256sum` say of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socketserver
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from minift import storage
from minift.checkpoints.hub import fetch as module
from minift.checkpoints.hub import https
from minift.checkpoints.hub.cache import Name, cache_dir, cached
from minift.checkpoints.hub.fetch import download, site
from minift.checkpoints.hub.https import NoConnection
from minift.errors import ConfigError, FormatError, StorageError

pytestmark = pytest.mark.usefixtures("loopback")

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "89" * 20
CONFIG, TOKENIZER = b'{"model_type": "llama"}\n', b'{"version": "1.0"}\n'
WEIGHTS = bytes(range(256)) * 20
BIG = bytes(range(256)) * 8192  # 2 MiB: arrives in several pieces
INDEX = (
    b'{"weight_map": {"a": "model-00001-of-00002.safetensors", '
    b'"b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}'
)
HASH = {
    CONFIG: "9eddb62b076f586b2186445e7872e5a05f0dfe06",
    TOKENIZER: "92bdb0aff34a95a7c00546c3d608c984294164ed",
    b"": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    INDEX: "47f80982d56bb27a70f1da9dead96f2afb241702",
    WEIGHTS: "4345361085c730756d843f13849c50a996fe2f1fac3a7ac05fb063bb743a423e",
    BIG: "91d3beb88a9b2f778a6c44a1c53b63d3c79931845a9aef84b3fb414610bd1938",
    b"first shard": "a3e22cd5cca8db957aece026c784a8a626125cc0402be8f62c8eab5a8065506a",
    b"second shard, longer": "ab76bd52a835b5ef6a3b8a871b06bbad45ebd839e786d297b9eacee56dbe0325",
    b"GGUF weights": "8a46a62632e21d0c832005a28cb86dfd5921227920a84939ba90bf55f9f3b737",
}
PLAIN = {
    "README.md": b"not wanted",
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "merges.txt": b"",
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": b"the same again, not wanted",
    "pytorch_model.bin": b"not wanted either",
    "onnx/model.onnx": b"nor this",
}
SHARDED = {
    "config.json": CONFIG,
    "model.safetensors.index.json": INDEX,
    "model-00001-of-00002.safetensors": b"first shard",
    "model-00002-of-00002.safetensors": b"second shard, longer",
}

Twist = Callable[["Handler"], bool]  # answers a request in its own way and says whether it did


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        toy, self.close_connection = self.server.toy, True
        toy.seen.append(self)
        for method, pattern, twist in list(toy.twists):
            matches = re.search(pattern, self.path) and method in ("*", self.command)
            if matches and twist(self):
                return
        if self.server is toy.away:
            self.content(next(d for d, h in HASH.items() if self.path == f"/{h}?secret"))
        elif found := re.fullmatch(r"/api/models/org/toy/revision/(.*)", self.path):
            if found[1] not in toy.revisions:
                self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(200, {}, toy.listing(toy.revisions[found[1]]))
        elif found := re.fullmatch(r"/org/toy/resolve/(\w+)/(.*)", self.path):
            self.resolve(found[1], toy.files[found[2]])
        else:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})

    def resolve(self, commit: str, data: bytes) -> None:
        headers = {"X-Repo-Commit": commit}
        if len(HASH[data]) == 40:
            self.answer(200, headers | {"ETag": f'W/"{HASH[data]}"'}, data)
            return
        headers |= {"X-Linked-Etag": f'"{HASH[data]}"', "X-Linked-Size": str(len(data))}
        place = f"{self.server.toy.away.url}/{HASH[data]}?secret"
        self.answer(302, headers | {"ETag": '"of-the-redirect"', "Location": place}, b"elsewhere")

    def content(self, data: bytes, *, cut: int | None = None) -> None:
        """A large file from the byte that was asked for on; at most `cut` bytes of it."""
        start, headers, status = 0, {"ETag": '"of-the-store"'}, 200
        if asked := self.headers.get("Range"):
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        self.answer(status, {"Content-Length": str(len(rest))} | headers, rest[:cut])

    def answer(self, status: int, headers: dict[str, str], data: bytes = b"") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the other side may have had enough
                self.wfile.write(data)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True
    block_on_close = False

    def __init__(self, toy: Toy):
        self.toy = toy
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Toy:
    """The hub's org/toy: its files, what was asked, and twists on single answers."""

    def __init__(self) -> None:
        self.files = dict(PLAIN)
        self.revisions = {"main": COMMIT, COMMIT: COMMIT}
        self.seen: list[Handler] = []
        self.twists: list[tuple[str, str, Twist]] = []
        self.hub, self.away = Server(self), Server(self)

    def listing(self, commit: str) -> bytes:
        return json.dumps(
            {"id": "org/toy", "sha": commit, "siblings": [{"rfilename": f} for f in self.files]}
        ).encode()

    def twist(self, method: str, pattern: str, how: Twist) -> None:
        self.twists.append((method, pattern, how))

    def asked(self) -> list[str]:
        """Method and last part of every request since the last time."""
        lines = [f"{one.command} {one.path.rpartition('/')[2]}" for one in self.seen]
        self.seen.clear()
        return lines

    def stop(self) -> None:
        for server in (self.hub, self.away):
            server.shutdown()
            server.server_close()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A hub, an empty cache, no token, and no waiting."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(https, "WAITS", (0.0,) * 4)
    toy = Toy()
    monkeypatch.setenv("HF_ENDPOINT", toy.hub.url + "/")
    yield toy
    toy.stop()


def tree(root: Path | None = None) -> dict[str, str]:
    """Every file and link of the cache, but the locks: path -> target or content's length."""
    root = root or cache_dir()
    return {
        path.relative_to(root).as_posix(): os.readlink(path)
        if path.is_symlink()
        else str(path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if (path.is_symlink() or path.is_file()) and ".locks" not in path.parts
    }


def says(status: int, headers: dict[str, str] | None = None, data: bytes = b"") -> Twist:
    def how(handler: Handler) -> bool:
        handler.answer(status, headers or {}, data)
        return True

    return how


def times(count: int, how: Twist) -> Twist:
    """Only the first `count` times."""
    left = [None] * count

    def limited(handler: Handler) -> bool:
        return bool(left) and (left.pop() is None) and how(handler)

    return limited


# ---- what is fetched, and how it lies in the cache -----------------------------------------------


def test_a_model_is_fetched_once(toy: Toy) -> None:
    said: list[str] = []
    path = download("org/toy", say=said.append)
    root = "models--org--toy/"
    assert path == cache_dir() / root / "snapshots" / COMMIT
    blobs = {CONFIG, TOKENIZER, b"", WEIGHTS}
    names = ("config.json", "tokenizer.json", "merges.txt", "model.safetensors")
    assert tree() == {
        **{f"{root}blobs/{HASH[data]}": str(len(data)) for data in blobs},
        **{f"{root}snapshots/{COMMIT}/{n}": f"../../blobs/{HASH[PLAIN[n]]}" for n in names},
        f"{root}refs/main": "40",
    }
    assert (cache_dir() / root / "refs" / "main").read_text() == COMMIT
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    asked = toy.asked()
    assert asked[0] == "GET main"
    # An empty file has nothing to ask for.
    both = [f"{way} {name}" for way in ("HEAD", "GET") for name in names]
    both.remove("GET merges.txt")
    assert sorted(asked[1:]) == sorted([*both, f"GET {HASH[WEIGHTS]}?secret"])
    assert download("org/toy") == path
    assert toy.asked() == ["GET main"]
    assert cached("org/toy") == path


def test_shards_are_those_of_the_index(toy: Toy) -> None:
    toy.files = SHARDED | {"model-00003-of-00002.safetensors": b"stray"}
    path = download("org/toy@main")
    assert {p.name: p.read_bytes() for p in path.iterdir()} == SHARDED
    assert cached("org/toy") == path
    (path / "model-00002-of-00002.safetensors").unlink()
    assert cached("org/toy") is None


@pytest.mark.parametrize("name", ["toy.gguf", "deep/er/toy.gguf"])
def test_one_gguf(toy: Toy, name: str) -> None:
    toy.files = {"README.md": b"not wanted", "toy.gguf": b"GGUF weights", name: b"GGUF weights"}
    path = download(f"org/toy/{name}")
    assert path == cache_dir() / "models--org--toy" / "snapshots" / COMMIT / name
    assert path.read_bytes() == b"GGUF weights"
    assert os.readlink(path) == "../" * (2 + name.count("/")) + f"blobs/{HASH[b'GGUF weights']}"
    assert cached(f"org/toy/{name}") == path
    with pytest.raises(ConfigError, match=r"org/toy has no x\.gguf; name one .*: .*toy\.gguf"):
        download("org/toy/x.gguf")
    with pytest.raises(ConfigError, match=r"org/toy is no model for minift: .*toy\.gguf"):
        download("org/toy")


def test_a_new_commit_keeps_what_did_not_change(toy: Toy) -> None:
    download("org/toy")
    toy.asked()
    toy.revisions["main"] = OTHER
    toy.files["tokenizer.json"] = CONFIG
    path = download("org/toy")
    assert path.name == OTHER
    assert (path / "tokenizer.json").read_bytes() == CONFIG
    assert not [line for line in toy.asked() if line.startswith("GET") and "main" not in line]
    # The old one is still there under its commit, and a commit moves no branch.
    assert download(f"org/toy@{COMMIT}").name == COMMIT
    assert cached("org/toy") == path


def test_revisions_with_a_slash(toy: Toy) -> None:
    toy.revisions["refs%2Fpr%2F1"] = OTHER
    assert download("org/toy@refs/pr/1").name == OTHER
    assert (cache_dir() / "models--org--toy/refs/refs/pr/1").read_text() == OTHER
    with pytest.raises(ConfigError, match=r'org/toy on 127.* has no revision "v2"'):
        download("org/toy@v2")


def test_an_adapter(toy: Toy) -> None:
    toy.files = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
    path = download("org/toy")
    assert {p.name for p in path.iterdir()} == set(toy.files)
    assert cached("org/toy") == path


def test_torch_files_where_there_is_nothing_else(toy: Toy) -> None:
    toy.files = {"config.json": CONFIG, "pytorch_model.bin": WEIGHTS, "x.safetensors": b"stray"}
    assert {p.name for p in download("org/toy").iterdir()} == {"config.json", "pytorch_model.bin"}


def test_where_links_cannot_be_made_the_file_takes_its_place(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def symlink(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", symlink)
    toy.files["tokenizer_config.json"] = CONFIG  # the same content twice
    path = download("org/toy")
    assert not any(p.is_symlink() for p in path.iterdir())
    assert (path / "config.json").read_bytes() == (path / "tokenizer_config.json").read_bytes()
    assert list((path.parents[1] / "blobs").iterdir()) == []
    toy.asked()
    assert download("org/toy") == path
    assert toy.asked() == ["GET main"]


def test_what_another_program_left(toy: Toy) -> None:
    root = cache_dir() / "models--org--toy"
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "blobs" / HASH[WEIGHTS]).write_bytes(WEIGHTS[:-1])  # cut short
    (root / "blobs" / HASH[CONFIG]).write_bytes(CONFIG)  # whole, not linked
    (root / "snapshots" / COMMIT / "tokenizer.json").symlink_to("../../blobs/gone")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT + "\n")
    assert cached("org/toy") is None
    path = download("org/toy")
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert (path / "tokenizer.json").read_bytes() == TOKENIZER
    assert "GET config.json" not in toy.asked()


def test_progress_is_in_bytes(toy: Toy) -> None:
    class Bar:
        def __init__(self, total: int, unit: str):
            bars.append((total, unit))

        def advance(self, by: int) -> None:
            steps.append(by)

        def close(self) -> None:
            bars.append((-1, "closed"))

    bars: list[tuple[int, str]] = []
    steps: list[int] = []
    said: list[str] = []
    download("org/toy", bar=Bar, say=said.append)
    assert bars == [(5120, "B"), (-1, "closed")]
    assert sum(steps) == 5120
    assert said == ["fetching org/toy, 0.0 MB"]


# ---- interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_cut_connections_go_on(toy: Toy, ranges: bool) -> None:
    def cut(handler: Handler) -> bool:
        if not ranges:
            del handler.headers["Range"]
        handler.content(WEIGHTS, cut=1000)
        return True

    toy.twist("GET", HASH[WEIGHTS], times(3, cut))
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS
    starts = [one.headers["Range"] for one in toy.seen if one.server is toy.away]
    if ranges:
        assert starts == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert not [name for name in tree() if name.endswith(".incomplete")]


@pytest.mark.parametrize("where", ["listing", "facts", "small", "large"])
def test_trouble_that_passes(toy: Toy, where: str) -> None:
    pattern = {"listing": "/api/", "facts": "config.json", "small": "config.json"}
    toy.twist(
        "HEAD" if where == "facts" else "GET",
        pattern.get(where, HASH[WEIGHTS]),
        times(2, says(503)),
    )
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_download_that_is_given_up_goes_on_next_time(toy: Toy) -> None:
    def cut(handler: Handler) -> bool:
        handler.content(WEIGHTS, cut=100)
        return True

    toy.twist("GET", HASH[WEIGHTS], cut)
    with pytest.raises(NoConnection, match=r"500 of 5,120 bytes of model.safetensors; what has"):
        download("org/toy")
    partial = cache_dir() / f"models--org--toy/blobs/{HASH[WEIGHTS]}.incomplete"
    assert partial.read_bytes() == WEIGHTS[:500]
    assert not (cache_dir() / "models--org--toy/refs").exists()
    assert cached("org/toy") is None
    toy.twists.clear()
    toy.seen.clear()
    path = download("org/toy")
    assert [o.headers["Range"] for o in toy.seen if o.server is toy.away] == ["bytes=500-"]
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_interrupted_by_the_user(toy: Toy) -> None:
    class Bar:
        def __init__(self, total: int, unit: str):
            pass

        def advance(self, by: int) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    toy.files["model.safetensors"] = BIG
    with pytest.raises(KeyboardInterrupt):
        download("org/toy", bar=Bar)
    here = [name for name in tree() if HASH[BIG] in name]
    assert [name.rpartition(".")[2] for name in here] == ["incomplete"]
    assert 0 < int(tree()[here[0]]) < len(BIG)
    assert (download("org/toy") / "model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("spoil", ["longer", "other bytes", "as long"])
def test_a_partial_file_that_is_not_ours(toy: Toy, spoil: str) -> None:
    partial = cache_dir() / f"models--org--toy/blobs/{HASH[WEIGHTS]}.incomplete"
    partial.parent.mkdir(parents=True)
    size = {"longer": 5121, "other bytes": 100, "as long": 5120}[spoil]
    partial.write_bytes(b"?" * size)
    if spoil != "longer":
        with pytest.raises(FormatError, match="the file was removed, call again") as caught:
            download("org/toy")
        assert caught.value.code == "bad-checksum"
        assert not partial.exists()
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_does_not_go_on(toy: Toy) -> None:
    partial = cache_dir() / f"models--org--toy/blobs/{HASH[WEIGHTS]}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:100])
    toy.twist("GET", HASH[WEIGHTS], times(1, says(416)))
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS


PROGRAM = """
import sys
from minift.checkpoints.hub import https
from minift.checkpoints.hub import fetch as hub
https.WAITS = ()
print(hub.download("org/toy"))
"""


def run(toy: Toy, **env: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[3])
    full = os.environ | {"PYTHONPATH": root} | env
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=full, stdout=subprocess.PIPE, text=True
    )


def test_killed_while_it_writes(toy: Toy) -> None:
    """SIGKILL before the k-th change of the disk: the next call makes it whole."""
    toy.files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    names: set[str] = set()
    for k in range(1, 200, 2):
        with run(toy, MINIFT_CRASH_AT=str(k)) as process:
            process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -9
        for path in cache_dir().rglob("blobs/*"):
            assert path.suffix or path.read_bytes() in (CONFIG, WEIGHTS)
            names.add(path.name)
        path = download("org/toy")
        assert (path / "config.json").read_bytes() == CONFIG
        assert (path / "model.safetensors").read_bytes() == WEIGHTS
        assert len(tree()) == 5
        shutil.rmtree(cache_dir())
    assert 20 < k < 60
    blobs = {HASH[CONFIG], HASH[WEIGHTS]}
    assert names == blobs | {f"{name}.incomplete" for name in blobs}


def test_callers_at_the_same_time(toy: Toy) -> None:
    """Two processes and two threads: one fetches each file, all find it."""
    toy.files["model.safetensors"] = BIG
    gate = threading.Event()

    def wait(handler: Handler) -> bool:
        gate.wait(30)
        return False

    toy.twist("GET", HASH[BIG], wait)
    said: list[str] = []
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(download("org/toy", say=said.append)))
        for _ in range(2)
    ]
    with run(toy) as one, run(toy) as two:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while time.monotonic() < end and not any("waiting for" in line for line in said):
            time.sleep(0.01)
        gate.set()
        for thread in threads:
            thread.join(120)
        lines = [process.communicate()[0].strip() for process in (one, two)]
    assert found == [Path(line) for line in lines] == [cached("org/toy")] * 2
    assert any(line == "waiting for another download of model.safetensors" for line in said)
    assert toy.asked().count(f"GET {HASH[BIG]}?secret") == 1
    assert (found[0] / "model.safetensors").read_bytes() == BIG


def test_two_writers_without_working_locks_do_no_harm(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def no_lock(*args: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(module, "alone", no_lock)
    partial = cache_dir() / f"models--org--toy/blobs/{HASH[WEIGHTS]}.incomplete"

    def meanwhile(handler: Handler) -> bool:
        partial.write_bytes(WEIGHTS[:3000])  # as far as the other one has come
        return False

    toy.twist("GET", HASH[WEIGHTS], meanwhile)
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS


# ---- who may read, and what is told to whom ------------------------------------------------------


@pytest.mark.parametrize("source", ["HF_TOKEN", "HF_TOKEN_PATH", "home"])
def test_the_token_is_for_the_hub_only(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    if source == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    else:
        path = tmp_path / "home" / "token" if source == "home" else tmp_path / "t"
        path.parent.mkdir(exist_ok=True)
        path.write_text("hf_secret\n")
        if source != "home":
            monkeypatch.setenv("HF_TOKEN_PATH", str(path))
    download("org/toy")
    got = {(one.server is toy.hub, one.headers.get("Authorization")) for one in toy.seen}
    assert got == {(True, "Bearer hf_secret"), (False, None)}
    assert "hf_secret" not in repr(site())


def test_no_token_no_header(toy: Toy) -> None:
    download("org/toy")
    assert {one.headers.get("Authorization") for one in toy.seen} == {None}


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "ä"])
def test_a_token_that_is_none(toy: Toy, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match="HF_TOKEN: found spaces") as caught:
        download("org/toy")
    assert token not in str(caught.value)
    assert toy.seen == []


@pytest.mark.parametrize(
    ("pattern", "status", "code", "text"),
    [
        ("/api/", 401, "RepoNotFound", "no model org/toy on 127.* check the spelling; .* HF_TOKEN"),
        ("/api/", 401, "", r"no model org/toy on 127.*\(401 with no token\): check the spelling"),
        ("/api/", 404, "", r'no model org/toy .*\(404\): .* revision "main"; a private one needs'),
        ("/api/", 403, "", r"org/toy is gated .*accept its terms at http.*/org/toy, then set HF_T"),
        ("config.json", 401, "GatedRepo", r"org/toy is gated \(401 with no token\): accept"),
        ("config.json", 404, "EntryNotFound", "no config.json in org/toy"),
        ("/api/", 500, "", "127.* answered 500 Internal Server Error"),
        ("config.json", 429, "", "127.* answered 429 Too Many Requests"),
    ],
)
def test_refused(toy: Toy, pattern: str, status: int, code: str, text: str) -> None:
    toy.twist("*", pattern, says(status, {"X-Error-Code": code}))
    with pytest.raises(ConfigError, match=text) as caught:
        download("org/toy")
    assert "\n" not in str(caught.value)
    assert len(toy.asked()) <= 10


def test_a_bad_token_is_told_apart(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    toy.twist("*", "/api/", says(401))
    with pytest.raises(ConfigError, match="401 with the token that is set") as caught:
        download("org/toy")
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["toy", "/toy", "org/", "../toy", "org/..", "org/a--b", "org/a..b", "org/toy/x.bin", "-o/toy",
     "org/toy/../x.gguf", "org/toy//x.gguf", "org/toy@", "org/toy@../x", "org/toy@a//b", "o\n/toy",
     "org/toy@a/./b", "org/toy@a b", "org/toy/a\\b.gguf", "C:/toy", "org/" + "a" * 97, "o/ü"],
)  # fmt: skip
def test_names(toy: Toy, name: str) -> None:
    with pytest.raises(ConfigError, match=r"found .* allowed"):
        download(name)
    assert toy.seen == []


def test_names_that_are() -> None:
    assert Name.parse("Org-1/na.me_2@refs/pr/1") == Name("Org-1", "na.me_2", "refs/pr/1")
    assert Name.parse("o/n/a b/Q4.gguf@v1.0") == Name("o", "n", "v1.0", "a b/Q4.gguf")


# ---- no connection -------------------------------------------------------------------------------


def test_offline(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"not whole in the cache .* HF_HUB_OFFLINE is set"):
        download("org/toy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    path = download("org/toy")
    toy.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert download("org/toy") == path
    assert download(f"org/toy@{COMMIT}") == path
    assert toy.seen == []
    with pytest.raises(ConfigError):
        download("org/toy@v2")
    for name, spoil in (("config.json", None), ("refs", "no commit"), ("refs", "é")):
        place = path / name if spoil is None else path.parents[1] / "refs" / "main"
        before = place.read_bytes()
        place.unlink()
        if spoil:
            place.write_text(spoil)
        assert cached("org/toy") is None
        place.unlink(missing_ok=True)
        place.write_bytes(before)
        assert cached("org/toy") == path


@pytest.mark.parametrize("how", ["refused", "no name", "hangs up", "trouble"])
def test_no_connection(toy: Toy, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def hang_up(handler: Handler) -> bool:
        return True

    if how == "no name":
        monkeypatch.setenv("HF_ENDPOINT", "https://no-such-host.invalid")
    elif how == "refused":
        other = Server(toy)
        other.shutdown()
        other.server_close()
        monkeypatch.setenv("HF_ENDPOINT", other.url)
    else:
        toy.twist("*", "/api/", hang_up if how == "hangs up" else says(502))
    with pytest.raises(NoConnection, match=r"^(no connection to|127\S+ answered 502)") as caught:
        download("org/toy")
    assert "\n" not in str(caught.value)
    assert len(toy.asked()) == (5 if how in ("hangs up", "trouble") else 0)


def test_no_connection_and_a_cache(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = download("org/toy")
    monkeypatch.setenv("HF_ENDPOINT", "https://no-such-host.invalid")
    said: list[str] = []
    assert download("org/toy", say=said.append) == path
    assert said[0].endswith("this is what the cache has")
    with pytest.raises(NoConnection):
        download("org/other")


def test_a_server_that_falls_silent(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "TIMEOUT", 0.1)
    done = threading.Event()

    def silent(handler: Handler) -> bool:
        done.wait(10)
        return True

    toy.twist("*", "/api/", silent)
    with pytest.raises(NoConnection, match="timed out"):
        download("org/toy")
    done.set()


@pytest.mark.parametrize(
    "endpoint",
    ["http://hub.example", "ftp://127.0.0.1", "127.0.0.1", "https://", "https://u:p@hub.example",
     "https://hub.example?x", "https://hub.example:port", "https://[::1", "file:///etc", "https://ü"],
)  # fmt: skip
def test_endpoints(toy: Toy, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match=r"HF_ENDPOINT: found .*, allowed https://HOST"):
        download("org/toy")


# ---- answers that nobody should give -------------------------------------------------------------


def listing(**changes: object) -> bytes:
    siblings = [{"rfilename": name} for name in PLAIN]
    return json.dumps({"sha": COMMIT, "siblings": siblings} | changes).encode()


HOSTILE = {
    "no JSON": b"<html>",
    "nothing": b"",
    "a list": b"[]",
    "no sha": listing(sha=None),
    "a short sha": listing(sha="abc"),
    "a path for a sha": listing(sha="../../../../../../../../../../../etc/pa"),
    "a sha in capitals": listing(sha=COMMIT.upper()),
    "no siblings": listing(siblings={}),
    "siblings of text": listing(siblings=list(PLAIN)),
    "a name that is none": listing(siblings=[{"rfilename": None}]),
    "up": listing(siblings=[{"rfilename": "../config.json"}]),
    "absolute": listing(siblings=[{"rfilename": "/etc/passwd"}]),
    "an empty part": listing(siblings=[{"rfilename": "a//b"}]),
    "NUL": listing(siblings=[{"rfilename": "a\0b"}]),
    "twice": listing(siblings=[{"rfilename": "a"}] * 2),
    "a key twice": b'{"sha": "' + COMMIT.encode() + b'", ' + listing()[1:],
    "NaN": listing(x=float("nan")),
    "deep": b"[" * 500_000,
    "no UTF-8": b'{"sha": "\xff"}',
    "a long number": b'{"sha": ' + b"9" * 500_000 + b"}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_listings(toy: Toy, case: str) -> None:
    toy.twist("*", "/api/", says(200, {}, HOSTILE[case]))
    begin = time.process_time()
    with pytest.raises(FormatError) as caught:
        download("org/toy")
    assert time.process_time() - begin < 1
    assert "\n" not in str(caught.value)
    assert tree() == {}


@pytest.mark.parametrize("chunked", [False, True], ids=["no length", "chunk of -1"])
def test_an_endless_listing(toy: Toy, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    monkeypatch.setattr(module, "LISTING_LIMIT", 1 << 20)

    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(b"-1\r\n" if chunked else b"")
            for _ in range(2000):  # 128 MB
                handler.wfile.write(b" " * 65536)
        return True

    toy.twist("*", "/api/", endless)
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"at most 1,048,576 bytes") as caught:
        download("org/toy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "too-large"
    assert peak < 64 << 20


def test_a_listing_that_is_too_slow(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTING_TIMEOUT", 0.0)
    with pytest.raises(NoConnection, match="too slow"):
        download("org/toy")


def test_a_listing_that_ends_early_is_asked_for_again(toy: Toy) -> None:
    data = toy.listing(COMMIT)
    toy.twist("*", "/api/", times(1, says(200, {"Content-Length": "999"}, data)))
    assert download("org/toy") == cached("org/toy")


@pytest.mark.parametrize(
    ("headers", "where", "code"),
    [
        ({"ETag": ""}, "ETag of model.safetensors", "bad-checksum"),
        ({"ETag": '"../../../x"'}, "ETag of model.safetensors", "bad-checksum"),
        ({"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'}, "ETag of", "bad-checksum"),
        ({"ETag": '"' + "A" * 40 + '"'}, "ETag of", "bad-checksum"),
        ({"X-Linked-Size": "-1"}, "size of model.safetensors", "too-large"),
        ({"X-Linked-Size": "1e3"}, "size of", "too-large"),
        ({"X-Linked-Size": "9" * 5000}, "size of", "too-large"),
        ({"X-Linked-Size": str((1 << 40) + 1)}, "size of", "too-large"),
        ({"X-Linked-Size": "٣"}, "size of", "too-large"),
        ({"X-Repo-Commit": OTHER}, "X-Repo-Commit of model.safetensors", "bad-checksum"),
    ],
)
def test_hostile_headers(toy: Toy, headers: dict[str, str], where: str, code: str) -> None:
    def how(handler: Handler) -> bool:
        good = {"ETag": f'"{HASH[WEIGHTS]}"', "X-Linked-Size": "5120", "X-Repo-Commit": COMMIT}
        # Headers are Latin-1 on the wire; anything goes.
        both = (good | headers).items()
        handler.answer(200, {k: v.encode().decode("latin-1") for k, v in both})
        return True

    toy.twist("HEAD", "model.safetensors", how)
    with pytest.raises(FormatError) as caught:
        download("org/toy")
    assert where in str(caught.value)
    assert caught.value.code == code
    assert len(str(caught.value)) < 400


def test_a_lie_about_a_size_costs_no_blob(toy: Toy) -> None:
    path = download("org/toy")
    blob = (path / "model.safetensors").resolve()
    toy.revisions["main"] = OTHER
    lie = {"ETag": f'"{HASH[WEIGHTS]}"', "X-Linked-Size": "100", "X-Repo-Commit": OTHER}
    toy.twist("HEAD", "model.safetensors", says(200, lie))
    toy.twist("GET", "model.safetensors", says(200, {}, b"x" * 100))
    with pytest.raises(FormatError, match="the file was removed"):
        download("org/toy")
    assert blob.read_bytes() == WEIGHTS
    assert cached("org/toy") == path


def test_small_files_have_a_smaller_limit(toy: Toy) -> None:
    etag = {"ETag": f'"{HASH[CONFIG]}"', "X-Linked-Size": str((64 << 20) + 1)}
    toy.twist("HEAD", "config.json", says(200, etag))
    with pytest.raises(FormatError, match=r"size of config.json: found '?67108865"):
        download("org/toy")


def test_a_redirect_is_no_file(toy: Toy) -> None:
    """Its own ETag and length do not count when the hub did not send the linked ones."""
    headers = {"ETag": f'"{HASH[WEIGHTS]}"', "Location": toy.away.url}
    toy.twist("HEAD", "model.safetensors", says(302, headers, b"x"))
    with pytest.raises(FormatError, match=r"ETag of model.safetensors: found '?'?, allowed"):
        download("org/toy")


@pytest.mark.parametrize("data", ["large", "small"])
def test_other_bytes_than_promised(toy: Toy, data: str) -> None:
    wrong = {"large": WEIGHTS[::-1], "small": CONFIG[::-1]}[data]
    toy.twist("GET", HASH[WEIGHTS] if data == "large" else "config.json", says(200, {}, wrong))
    with pytest.raises(FormatError, match="the file was removed, call again") as caught:
        download("org/toy")
    assert caught.value.code == "bad-checksum"
    assert not [name for name in tree() if HASH[WEIGHTS if data == "large" else CONFIG] in name]
    toy.twists.clear()
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (200, {"Content-Length": "5119"}, "shape-mismatch"),
        (200, {"Content-Length": "99999999999999"}, "shape-mismatch"),
        (200, {"Content-Length": "-5"}, "shape-mismatch"),
        (206, {}, "out-of-range"),  # nobody asked for a range
        (204, {}, "out-of-range"),
        (304, {}, "out-of-range"),
        (418, {}, "out-of-range"),
    ],
)
def test_hostile_bodies(toy: Toy, status: int, headers: dict[str, str], code: str) -> None:
    toy.twist("GET", HASH[WEIGHTS], says(status, headers, WEIGHTS))
    with pytest.raises(FormatError) as caught:
        download("org/toy")
    assert caught.value.code == code
    assert cached("org/toy") is None


@pytest.mark.parametrize(
    "ranges", ["bytes 0-5119/5120", "bytes 100-5119/5121", "bytes 100-200/5120", "", "garbage"]
)
def test_hostile_ranges(toy: Toy, ranges: str) -> None:
    partial = cache_dir() / f"models--org--toy/blobs/{HASH[WEIGHTS]}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(WEIGHTS[:100])
    toy.twist("GET", HASH[WEIGHTS], says(206, {"Content-Range": ranges}, WEIGHTS[100:]))
    with pytest.raises(FormatError, match=r"Content-Range of model.safetensors") as caught:
        download("org/toy")
    assert caught.value.code == "out-of-range"
    assert partial.read_bytes() == WEIGHTS[:100]


def test_an_endless_file_is_read_as_far_as_it_was_promised(toy: Toy) -> None:
    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(WEIGHTS)
            for _ in range(2000):
                handler.wfile.write(b"x" * 65536)
        return True

    toy.twist("GET", HASH[WEIGHTS], endless)
    assert (download("org/toy") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_model_that_moved(toy: Toy) -> None:
    toy.twist(
        "*", "^/api/models/org/old/", says(307, {"Location": "/api/models/org/toy/revision/main"})
    )
    toy.twist("*", "^/org/old/", lambda h: says(307, {"Location": h.path.replace("old", "toy")})(h))
    path = download("org/old")
    assert path == cache_dir() / "models--org--old" / "snapshots" / COMMIT
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "index",
    [b"{}", b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"{",
     b'{"weight_map": {"a": "../../x.safetensors"}}', b'{"weight_map": {"a": "/x.safetensors"}}',
     b'{"weight_map": {"a": "C:x.safetensors"}}', b'{"weight_map": {"a": "config.json"}}',
     b'{"weight_map": {"a": "not-listed.safetensors"}}'],
)  # fmt: skip
def test_hostile_indices(toy: Toy, index: bytes) -> None:
    done = subprocess.run(
        ["git", "hash-object", "--stdin"], input=index, capture_output=True, check=True
    )
    HASH[index] = done.stdout.decode().strip()
    toy.files = SHARDED | {"model.safetensors.index.json": index}
    with pytest.raises(FormatError, match=r"model\.safetensors\.index\.json"):
        download("org/toy")
    assert cached("org/toy") is None
    del HASH[index]


# ---- the disk ------------------------------------------------------------------------------------


def test_a_full_disk(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.files["model.safetensors"] = BIG
    real = os.write
    left = [1 << 20]

    def write(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(fd, bytes(data[: left[0]]))
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match=r"No space left .* kept; to keep .* HF_HUB_CACHE") as e:
        download("org/toy")
    assert e.value.errno == errno.ENOSPC
    assert "\n" not in str(e.value)
    monkeypatch.setattr(os, "write", real)
    toy.seen.clear()
    assert (download("org/toy") / "model.safetensors").read_bytes() == BIG
    (start,) = [one.headers["Range"] for one in toy.seen if one.server is toy.away]
    assert start is not None


def test_a_disk_that_is_too_small(toy: Toy) -> None:
    size = {"X-Linked-Size": str(1 << 40), "ETag": f'"{HASH[WEIGHTS]}"'}
    toy.twist("HEAD", "model.safetensors", says(200, size))
    with pytest.raises(StorageError, match=r"needs 1,099,511\.6 MB, and this disk has") as caught:
        download("org/toy")
    assert "set HF_HUB_CACHE" in str(caught.value)
    assert f"GET {HASH[WEIGHTS]}" not in toy.asked()


@pytest.mark.parametrize("how", ["read-only", "a file in the way"])
def test_a_cache_that_cannot_be_written(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "read-only":

        def refuse(*args: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "home"))

        monkeypatch.setattr(storage, "_io", refuse)
    else:
        (tmp_path / "home").write_text("")
    with pytest.raises(StorageError, match="to keep models elsewhere set HF_HUB_CACHE") as caught:
        download("org/toy")
    assert "\n" not in str(caught.value)


def test_a_whole_cache_is_not_written(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = download("org/toy")
    monkeypatch.setattr(storage, "_io", lambda *args: pytest.fail("the disk was touched"))
    assert download("org/toy") == path
