"""A model of the hub by name, into the cache that other programs share: `org/name[@revision]`.

    GET  ENDPOINT/api/models/ORG/NAME/revision/REVISION     its commit (sha) and files (siblings)
    HEAD ENDPOINT/ORG/NAME/resolve/COMMIT/FILE              one file's hash and size
    GET  the same                                           its bytes, mostly sent by another host

    CACHE/models--ORG--NAME/blobs/HASH                      each file once, named by its hash
                            blobs/HASH.incomplete           one that is on its way
                            snapshots/COMMIT/FILE           a link: ../../blobs/HASH
                            refs/main                       the commit the branch was last seen at
    CACHE/.locks/models--ORG--NAME/HASH.lock                held while a blob is written

The layout is the hub's own (documentation, "Hub Local Cache"), so what is fetched here is found by
every other program, and the other way round. HASH is what the server calls the file's ETag: the
SHA-256 of a large (LFS) file, the git blob SHA-1 of a small one. A blob gets its name only after
the bytes on the disk gave that hash. Nothing that the server says is used as a path: file names are
those that minift looks for, or stood in an index and were judged.

Beside assets.py this is the only file that causes network traffic, and only when asked to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from minift.checkpoints.hub.cache import (
    CONFIGS,
    WEIGHTS,
    Name,
    cached,
    commit_of,
    expanded,
    home_dir,
)
from minift.checkpoints.hub.https import (
    REDIRECTS,
    Cut,
    NoConnection,
    Site,
    origin_of,
    patiently,
    received,
)
from minift.errors import ConfigError, FormatError, StorageError, one_line
from minift.formats import strict_json, weight_index
from minift.storage import extend, free_space, link, read_file, settle, write_file

HUB = "https://huggingface.co"
FACTS = (
    *CONFIGS, "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
LISTING_LIMIT = 8 << 20
FACTS_LIMIT, WEIGHTS_LIMIT = 64 << 20, 1 << 40
LISTING_TIMEOUT, CHUNK = 120.0, 1 << 20  # seconds for a whole answer in JSON; bytes

_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


class Bar(Protocol):
    def advance(self, by: int) -> object: ...
    def close(self) -> object: ...


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def site() -> Site:
    """The hub, and the token for it: HF_ENDPOINT; HF_TOKEN, else the file that a login left."""
    text = os.environ.get("HF_ENDPOINT") or HUB
    endpoint = text.rstrip("/")
    if origin_of(endpoint) is None or "?" in endpoint or "#" in endpoint:
        allowed = "https://HOST (http:// for this machine only)"
        raise ConfigError(f'HF_ENDPOINT: found "{one_line(text)}", allowed {allowed}')
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token:
        path = expanded(os.environ.get("HF_TOKEN_PATH") or str(home_dir() / "token"))
        if path.exists():
            token = read_file(path, limit_bytes=10_000).decode("ascii", "replace")
    token = token.strip()
    if token and not re.fullmatch("[!-~]+", token):
        raise ConfigError("HF_TOKEN: found spaces or special characters, allowed one token")
    return Site(endpoint, token or None)


def download(
    name: str,
    *,
    say: Callable[[str], object] = lambda line: None,
    bar: Callable[[int, str], Bar] | None = None,
) -> Path:
    """The snapshot folder of a model of the hub, or its one .gguf file; what is here stays.

    A second call asks for the commit only, and without a connection takes what the cache has. One
    that was interrupted goes on where it was. `bar(total, "B")` makes a progress bar.
    """
    wanted = Name.parse(name)
    if offline():
        if found := cached(wanted):
            return found
        place = wanted.folder
        raise ConfigError(f"{name} is not whole in the cache ({place}), and HF_HUB_OFFLINE is set")
    fetch = _Fetch(wanted, site(), say, bar)
    try:
        commit, listed = fetch.listing()
    except NoConnection as error:
        if found := cached(wanted):
            say(f"{error}; this is what the cache has")
            return found
        raise
    try:
        return fetch.snapshot_of(commit, listed)
    except OSError as error:
        text = error.strerror or str(error)
        if isinstance(error, StorageError):
            text = str(error).removeprefix(f"{one_line(error.path, 200)}: ")
        text = f"{text}; to keep models elsewhere set HF_HUB_CACHE"
        where = getattr(error, "path", error.filename) or wanted.folder
        raise StorageError(where, text, error.errno) from error


@dataclass(frozen=True)
class File:
    """What the server says of one file. `hash` is also the name of its blob."""

    name: str
    hash: str
    size: int


class _Fetch:
    """One call of `download`."""

    def __init__(
        self,
        wanted: Name,
        hub: Site,
        say: Callable[[str], object],
        bar: Callable[[int, str], Bar] | None,
    ):
        self.wanted, self.hub, self.say, self.bar = wanted, hub, say, bar
        self.commit = ""

    def snapshot_of(self, commit: str, listed: set[str]) -> Path:
        """Bring what minift reads of the listed files; -> where it is."""
        self.commit, wanted = commit, self.wanted
        snapshot = self.snapshot
        if wanted.file is not None:
            if wanted.file not in listed:
                raise ConfigError(f"{wanted.id} has no {wanted.file}; {_ggufs(listed)}")
            self.bring([wanted.file], WEIGHTS_LIMIT, bar=self.bar)
        else:
            weights = next((w for w in WEIGHTS if w in listed), None)
            if weights is None or not set(CONFIGS) & listed:
                needs = f"needs {' or '.join(CONFIGS)}, and {', '.join(WEIGHTS)}"
                raise ConfigError(f"{wanted.id} is no model for minift: {needs}; {_ggufs(listed)}")
            self.bring([n for n in FACTS if n in listed], FACTS_LIMIT)
            names = [weights]
            if weights.endswith(weight_index.END):
                self.bring(names, weight_index.INDEX_LIMIT)
                names = weight_index.read(snapshot / weights).files
                if missing := [shard for shard in names if shard not in listed]:
                    found = f"{len(missing)} files that are not there, as {missing[0]}"
                    raise FormatError(wanted.id, weights, found, "files of the model", "bad-path")
            self.bring(names, WEIGHTS_LIMIT, bar=self.bar)
        # Last, so that a branch never points at a snapshot that this call left half done.
        if self.commit not in (wanted.revision, commit_of(wanted)):
            write_file(wanted.folder / "refs" / wanted.revision, self.commit.encode())
        return snapshot / wanted.file if wanted.file else snapshot

    @property
    def snapshot(self) -> Path:
        return self.wanted.folder / "snapshots" / self.commit

    def listing(self) -> tuple[str, set[str]]:
        """The commit that the revision stands for now, and the names of its files."""
        revision = quote(self.wanted.revision, safe="")
        url = f"{self.hub.endpoint}/api/models/{self.wanted.id}/revision/{revision}"
        data = patiently(lambda: self.get_json(url))
        value = strict_json.parse(data, url, "answer", limit_bytes=LISTING_LIMIT)
        value = value if isinstance(value, dict) else {"sha": value}
        commit, siblings = value.get("sha"), value.get("siblings")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise FormatError(url, "sha", commit, "a commit, 40 hexadecimal digits", "bad-type")
        if not isinstance(siblings, list):
            raise FormatError(url, "siblings", siblings, "a list of files", "bad-type")
        names = set()
        for sibling in siblings:
            name = sibling.get("rfilename") if isinstance(sibling, dict) else None
            # git has no such paths: an answer with one is no listing, even if we want another file.
            if not isinstance(name, str) or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
                raise FormatError(url, "rfilename", name, "a relative path", "bad-path")
            if name in names:
                raise FormatError(url, "rfilename", name, "each file once", "dup-key")
            names.add(name)
        return commit, names

    def get_json(self, url: str) -> bytes:
        end = time.monotonic() + LISTING_TIMEOUT
        with self.hub.ask("GET", url) as answer:
            if answer.status != 200:
                raise self.refusal(answer)
            data = bytearray()
            for chunk in received(answer, LISTING_LIMIT + 1):
                data += chunk
                if len(data) > LISTING_LIMIT:
                    allowed = f"at most {LISTING_LIMIT:,} bytes"
                    raise FormatError(url, "answer", "a longer one", allowed, "too-large")
                if time.monotonic() > end:
                    raise Cut(f"{self.hub.host} is too slow", again=False)
            if answer.length:  # what was announced and did not come
                raise Cut(f"{self.hub.host} ended the answer early")
            return bytes(data)

    def bring(
        self, names: Sequence[str], limit: int, *, bar: Callable[[int, str], Bar] | None = None
    ) -> None:
        """Put those of the files into the snapshot that are not there."""
        names = [name for name in names if not (self.snapshot / name).is_file()]
        files = [patiently(functools.partial(self.facts, name, limit)) for name in names]
        blobs = self.wanted.folder / "blobs"
        sizes = {file.hash: file.size for file in files if _size(blobs / file.hash) != file.size}
        total = sum(sizes.values())
        here = sum(min(_size(blobs / f"{name}.incomplete"), sizes[name]) for name in sizes)
        if total > here:
            free_space(blobs, total - here)
        if bar is not None and total:
            self.say(f"fetching {self.wanted.id}, {(total - here) / 1e6:.1f} MB")
        progress = bar(total, "B") if bar is not None and total else None
        try:
            if progress is not None and here:
                progress.advance(here)
            for file in files:
                self.blob(file, blobs, progress)
        finally:
            if progress is not None:
                progress.close()

    def facts(self, name: str, limit: int) -> File:
        """The hash and the size of a file, from the headers of the hub's own answer."""
        with self.hub.ask("HEAD", self.url(name), follow_away=False) as answer:
            if answer.status != 200 and answer.status not in REDIRECTS:
                raise self.refusal(answer, name)
        headers = answer.headers
        tag, size = headers.get("X-Linked-Etag", ""), headers.get("X-Linked-Size", "")
        if answer.status == 200:  # a redirect's own ETag and length are those of the redirect
            tag, size = tag or headers.get("ETag", ""), size or headers.get("Content-Length", "")
        tag = tag.removeprefix("W/").strip('"')
        if not _COMMIT.fullmatch(tag) and not _SHA256.fullmatch(tag):
            allowed = "a SHA-256 or a git SHA-1"
            raise self.wrong(name, "ETag", tag, allowed, "bad-checksum")
        if not re.fullmatch("[0-9]{1,15}", size) or int(size) > limit:
            raise self.wrong(name, "size", size, f"at most {limit:,} bytes", "too-large")
        if (commit := headers.get("X-Repo-Commit", self.commit)) != self.commit:
            raise self.wrong(name, "X-Repo-Commit", commit, self.commit, "bad-checksum")
        return File(name, tag, int(size))

    def blob(self, file: File, blobs: Path, progress: Bar | None) -> None:
        """The file's bytes into the cache, checked, and its link into the snapshot."""
        blob, partial = blobs / file.hash, blobs / f"{file.hash}.incomplete"
        lock = self.wanted.folder.parent / ".locks" / self.wanted.folder.name / f"{file.hash}.lock"
        with alone(lock, lambda: self.say(f"waiting for another download of {file.name}")):
            if (self.snapshot / file.name).is_file():
                return
            # One of another size was cut short by another program; it stays until a better is here.
            if not blob.is_file() or _size(blob) != file.size:
                if _size(partial) > file.size:
                    partial.unlink()
                if not partial.exists():
                    extend(partial, 0, b"")
                while _size(partial) < file.size:
                    patiently(lambda: self.more(file, partial, progress))
                found = hash_of(partial, file)
                if found != file.hash:
                    partial.unlink()
                    kind = "SHA-256" if len(file.hash) == 64 else "git SHA-1"
                    allowed = f"{file.hash}; the file was removed, call again"
                    raise self.wrong(file.name, kind, found, allowed, "bad-checksum")
                settle(partial, blob)
            link(self.snapshot / file.name, blob)

    def more(self, file: File, partial: Path, progress: Bar | None) -> None:
        """Go on with a file that is not whole yet."""
        at = _size(partial)
        headers = {"Range": f"bytes={at}-"} if at else {}
        with self.hub.ask("GET", self.url(file.name), headers) as answer:
            if answer.status == 416 and at:
                partial.unlink()
                extend(partial, 0, b"")
                raise Cut(f"{self.hub.host} does not go on with {file.name}")
            if answer.status == 206 and at:
                ranges = answer.headers.get("Content-Range", "")
                allowed = f"bytes {at}-{file.size - 1}/{file.size}"
                if ranges not in (allowed, allowed.rpartition("/")[0] + "/*"):
                    raise self.wrong(file.name, "Content-Range", ranges, allowed, "out-of-range")
            elif answer.status == 200:
                at = 0  # a server that knows no ranges begins again
            else:
                raise self.refusal(answer, file.name)
            length = answer.headers.get("Content-Length")
            if length is not None and length != str(file.size - at):
                allowed = str(file.size - at)
                raise self.wrong(file.name, "Content-Length", length, allowed, "shape-mismatch")
            extend(partial, at, self.counted(answer, file, at, _size(partial), progress))

    def counted(
        self, answer: HTTPResponse, file: File, at: int, had: int, progress: Bar | None
    ) -> Iterator[bytes]:
        """The rest of a file from `at` on; only bytes beyond the `had` ones are progress."""
        end, begun = at, max(at, had)
        try:
            for chunk in received(answer, file.size - at):
                yield chunk
                fresh = end + len(chunk) - max(end, had)
                end += len(chunk)
                if progress is not None and fresh > 0:
                    progress.advance(fresh)
            if end < file.size:
                text = f"the connection ended after {end:,} of {file.size:,} bytes of {file.name}"
                raise Cut(text)
        except Cut as cut:
            cut.moved = max(0, end - begun)
            raise

    def url(self, name: str) -> str:
        return f"{self.hub.endpoint}/{self.wanted.id}/resolve/{self.commit}/{quote(name)}"

    def wrong(self, name: str, where: str, found: object, allowed: str, code: str) -> FormatError:
        return FormatError(f"{self.hub.endpoint}/{self.wanted.id}", f"{where} of {name}", found,
                           allowed, code)  # fmt: skip

    def refusal(self, answer: HTTPResponse, file: str | None = None) -> Exception:
        """What an answer that is neither 200 nor a redirect means, and what to do about it."""
        wanted, status, code = self.wanted, answer.status, answer.headers.get("X-Error-Code", "")
        page, host = f"{self.hub.endpoint}/{wanted.id}", self.hub.host
        token = "the token that is set" if self.hub.token else "no token"
        if status in (408, 425, 429) or status >= 500:
            return Cut(f"{host} answered {status} {one_line(answer.reason or '')}".rstrip())
        if code == "RevisionNotFound":
            return ConfigError(f'{wanted.id} on {host} has no revision "{wanted.revision}"')
        if code == "GatedRepo" or status == 403:
            todo = "then set HF_TOKEN to a token of that account"
            return ConfigError(
                f"{wanted.id} is gated ({status} with {token}): accept its terms at {page}, {todo}"
            )
        if status == 401 or code == "RepoNotFound":
            # The hub hides private models behind 401, and so it answers for what does not exist.
            todo = "check the spelling; if it is private or gated, set HF_TOKEN to a token that may"
            return ConfigError(
                f"no model {wanted.id} on {host} ({status} with {token}): {todo} read it"
            )
        if status == 404:
            what = f"no {file} in {wanted.id}" if file else f"no model {wanted.id}"
            todo = f'check the spelling and the revision "{wanted.revision}"'
            return ConfigError(f"{what} on {host} (404): {todo}; a private one needs HF_TOKEN")
        allowed = "200, 206 or a redirect"
        return FormatError(page, file or "answer", f"status {status}", allowed, "out-of-range")


def _ggufs(listed: set[str]) -> str:
    files = sorted(name for name in listed if name.endswith(".gguf"))
    if not files:
        return "it has no .gguf either"
    names = ", ".join(one_line(name) for name in files[:8])
    return f"name one .gguf as org/name/file.gguf: {names}" + (", …" if len(files) > 8 else "")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def hash_of(path: Path, file: File) -> str:
    """The SHA-256 of a file, or its SHA-1 as a git blob: of `blob SIZE`, a NUL and the bytes.

    Read again from the disk, so that it covers what an earlier call, or another program, wrote.
    """
    if len(file.hash) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with open(path, "rb", buffering=0) as source:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def alone(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file that the other programs of this cache use; no lock where there is none.

    It saves work and keeps nothing safe: two writers put the same bytes at the same places.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
