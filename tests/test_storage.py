"""Writing: killed, failed or cut short at every single call, the old or the new is there, whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minift import storage
from minift.errors import ConfigError, FormatError, Notice, StorageError
from minift.storage import (
    append_line,
    extend,
    free_space,
    link,
    map_file,
    probe,
    read_file,
    settle,
    write_file,
    write_folder,
)

OLD = {"a.bin": b"old a", "b.json": b"{}", "only-old": b"x"}
NEW = {"a.bin": b"new a, longer", "b.json": b'{"new": 1}', "c": b""}


def content(path: Path) -> dict[str, bytes] | bytes | None:
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def temporary(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".minift-")]


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in the place of another."""
    if request.param == "two renames":
        monkeypatch.setattr(storage, "_exchange", None)
    elif storage._exchange is None:
        pytest.skip("this system cannot exchange two names in one step")
    return str(request.param)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync, but without the disk: only the call itself matters in tests that make thousands."""

    def fsync(fd: int) -> None:
        os.fstat(fd)

    monkeypatch.setattr(os, "fsync", fsync)


# ---- what is written -----------------------------------------------------------------------------


def chunks() -> Iterator[bytes | memoryview]:
    yield b"one "
    yield memoryview(b"two")
    yield b""
    yield memoryview(bytearray(8)).cast("d")
    yield memoryview(b"").cast("B")


def test_write_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "f"
    write_file(path, b"first")
    assert path.read_bytes() == b"first"
    write_file(str(path), chunks())
    assert path.read_bytes() == b"one two" + bytes(8)
    write_file(path, b"")
    assert path.read_bytes() == b""
    assert os.listdir(path.parent) == ["f"]


def test_write_folder(swap: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    write_folder(path, OLD)
    assert content(path) == OLD
    write_folder(path, NEW | {"d": chunks()}, overwrite=True)
    assert content(path) == NEW | {"d": b"one two" + bytes(8)}
    write_folder(path, {}, overwrite=True)
    assert content(path) == {}
    assert os.listdir(path.parent) == ["model"]


def test_large_chunks_go_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PIECE", 7)
    data = os.urandom(1000)
    write_file(tmp_path / "f", [data[:500], memoryview(data)[500:]])
    assert (tmp_path / "f").read_bytes() == data


@pytest.mark.parametrize(
    "name", ["a b", "日本 ñ", "line\nend", "n" * 255, "-rf", "'quoted\"", "%s{}"]
)
def test_names(name: str, swap: str, tmp_path: Path) -> None:
    write_folder(tmp_path / name, OLD)
    write_folder(tmp_path / name, NEW, overwrite=True)
    assert content(tmp_path / name) == NEW
    with pytest.raises(ConfigError) as caught:
        write_folder(tmp_path / name, OLD)
    assert "\n" not in str(caught.value)


def test_modes_follow_the_umask_and_what_was_there(swap: str, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_file(tmp_path / "f", b"")
        write_folder(tmp_path / "d", OLD)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("f", "d", "d/a.bin")]
    assert modes == [0o640, 0o750, 0o640]
    os.chmod(tmp_path / "f", 0o600)
    os.chmod(tmp_path / "d", 0o700)
    write_file(tmp_path / "f", b"")
    write_folder(tmp_path / "d", NEW, overwrite=True)
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("f", "d")]
    assert modes == [0o600, 0o700]


def test_a_link_keeps_pointing_where_it_pointed(swap: str, tmp_path: Path) -> None:
    for real, name in (("f", "lf"), ("d", "ld")):
        (tmp_path / name).symlink_to(tmp_path / "there" / real)
    write_file(tmp_path / "lf", b"1")
    write_folder(tmp_path / "ld", OLD)
    write_folder(tmp_path / "ld", NEW, overwrite=True)
    assert (tmp_path / "lf").is_symlink()
    assert (tmp_path / "ld").is_symlink()
    assert content(tmp_path / "there" / "f") == b"1"
    assert content(tmp_path / "there" / "d") == NEW


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\0"])
def test_file_names_in_a_folder_are_plain(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain file name"):
        write_folder(tmp_path / "d", {"ok": b"", name: b""})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_no_path(path: str) -> None:
    with pytest.raises(ConfigError):
        write_file(path, b"")
    with pytest.raises(ConfigError):
        write_folder(path, {})


def test_what_is_in_the_way(tmp_path: Path) -> None:
    write_folder(tmp_path / "d", OLD)
    write_file(tmp_path / "f", b"1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "l").symlink_to(tmp_path)
    for path in ("d", "pipe"):
        with pytest.raises(ConfigError, match="not a plain file"):
            write_file(tmp_path / path, b"")
    with pytest.raises(ConfigError, match="exists; choose another name"):
        write_folder(tmp_path / "d", NEW)
    with pytest.raises(ConfigError, match="not a folder"):
        write_folder(tmp_path / "f", NEW, overwrite=True)
    for path, inside in (("tree", "inner"), ("linked", "l")):
        with pytest.raises(ConfigError, match=f"holds {inside}"):
            write_folder(tmp_path / path, NEW, overwrite=True)
    assert content(tmp_path / "d") == OLD
    assert not temporary(tmp_path)


@pytest.mark.parametrize("path", ["f/x", "f/x/y", "n" * 256, "loop/x"])
def test_paths_that_cannot_be(path: str, tmp_path: Path) -> None:
    write_file(tmp_path / "f", b"1")
    (tmp_path / "loop").symlink_to("loop")
    for write in (lambda p: write_file(p, b""), lambda p: write_folder(p, NEW)):
        with pytest.raises(StorageError) as caught:
            write(tmp_path / path)
        assert "what was there is unchanged" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert content(tmp_path / "f") == b"1"
    assert not temporary(tmp_path)


def test_the_source_of_the_bytes_fails(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    write_file(tmp_path / "f", b"old")
    write_folder(tmp_path / "d", OLD)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "f", broken())
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "d", NEW | {"z": broken()}, overwrite=True)
    assert content(tmp_path / "f") == b"old"
    assert content(tmp_path / "d") == OLD
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


# ---- a call that fails ---------------------------------------------------------------------------


class Calls:
    """Stands in for storage._io: notes every call, fails or shortens the ones it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.log: list[tuple[str, object]] = []
        self.fail_at, self.error, self.short = 0, 0, False
        monkeypatch.setattr(storage, "_io", self)

    def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        name, target = call.__name__, args[0]
        if name != "open":  # what a descriptor or a path stands for, whatever it is called later
            with contextlib.suppress(OSError):
                target = os.stat(target).st_ino
        if len(self.log) + 1 == self.fail_at:
            self.log.append((f"{name} fails", target))
            raise OSError(self.error, os.strerror(self.error))
        if name == "write" and self.short:
            args = (args[0], args[1][:1])
        result = call(*args)
        if name in ("open", "mkdir"):
            target = os.stat(result if name == "open" else args[0]).st_ino
        self.log.append((name, target))
        return result


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_every_call_may_fail(
    what: str, error: int, swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Any = OLD if what == "folder" else b"old"
    new: Any = NEW if what == "folder" else b"new"

    def write(path: Path, value: Any) -> None:
        if what == "folder":
            write_folder(path, value, overwrite=True)
        else:
            write_file(path, value)

    outcomes = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        folder.mkdir()
        write(folder / "x", old)
        with monkeypatch.context() as patch:
            calls = Calls(patch)
            calls.fail_at, calls.error = at, error
            try:
                write(folder / "x", new)
                problem = None
            except StorageError as raised:
                problem = raised
        if len(calls.log) < at:
            break
        if problem is None:  # only deleting what was replaced may fail unsaid
            assert content(folder / "x") == new
            assert calls.log[at - 1][0] in ("unlink fails", "rmdir fails")
        else:
            assert problem.errno == error
            assert "\n" not in str(problem)
            assert str(folder / "x") in str(problem)
            unchanged = "unchanged" in str(problem)
            assert content(folder / "x") == (old if unchanged else new)
            assert not temporary(folder) or not unchanged
        outcomes.append(content(folder / "x") == new)
        write(folder / "x", new)
        assert os.listdir(folder) == ["x"]
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert len(outcomes) > 5


def test_writes_that_take_less_than_they_are_given(
    swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calls(monkeypatch).short = True
    write_folder(tmp_path / "d", OLD)
    write_folder(tmp_path / "d", NEW, overwrite=True)
    assert content(tmp_path / "d") == NEW


def test_a_limit_on_file_size_cuts_a_write_in_two(tmp_path: Path) -> None:
    """The system takes 1,000 of 3,000 bytes, then says EFBIG."""
    code = f"""
import resource
from minift.errors import StorageError
from minift.storage import write_folder
write_folder({str(tmp_path / "d")!r}, {{"a": b"old"}})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_folder({str(tmp_path / "d")!r}, {{"a": b"new", "b": bytes(3000)}}, overwrite=True)
except StorageError as problem:
    print(problem)
"""
    said = python(code)
    assert said.endswith("cannot write: File too large; what was there is unchanged\n")
    assert content(tmp_path / "d") == {"a": b"old"}
    assert os.listdir(tmp_path) == ["d"]


def test_order_of_calls(swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file synced after its last byte, its folder after that, then the rename, then the
    parent folder, and only then is anything deleted."""
    target = tmp_path / "d"
    write_folder(target, OLD)
    calls = Calls(monkeypatch)
    write_folder(target, NEW, overwrite=True)
    log = calls.log
    parent, folder = tmp_path.stat().st_ino, target.stat().st_ino
    files = {(target / name).stat().st_ino for name in NEW}
    renames = [i for i, (name, _) in enumerate(log) if name in ("rename", "exchange")]
    assert len(renames) == {"exchange": 1, "two renames": 2}[swap]
    for inode in files:
        of_file = [name for name, target_inode in log[: renames[0]] if target_inode == inode]
        assert of_file[0] == "open"
        assert of_file[-1] == "fsync"
        assert of_file.count("fsync") == 1
    synced = log.index(("fsync", folder))
    assert max(log.index(("fsync", inode)) for inode in files) < synced < renames[0]
    confirmed = log.index(("fsync", parent))
    assert confirmed == renames[-1] + 1
    deleted = [i for i, (name, _) in enumerate(log) if name in ("unlink", "rmdir")]
    assert len(deleted) == len(OLD) + 1
    assert min(deleted) > confirmed


# ---- a process that is killed --------------------------------------------------------------------

# Every case is a fork of one small process: no torch, no threads, and a few milliseconds each.
KILLS = """
import json, os, sys
from pathlib import Path
from minift import storage

root, what, swap = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
storage._PIECE = 4
os.fsync = os.fstat  # a kill loses nothing that was written, synced or not; and this is fast
if swap == "two renames":
    storage._exchange = None
OLD, NEW = {"a": b"old", "b": b"gone"}, {"a": b"new, and longer", "c": b"new too"}


def write(path, values):
    if what == "folder":
        storage.write_folder(path, values, overwrite=True)
    else:
        storage.write_file(path, values["a"])


def killed(at, path, values):
    child = os.fork()
    if child == 0:
        os.environ["MINIFT_CRASH_AT"], storage._operations = str(at), 0
        write(path, values)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 9


def state(path):
    if path.is_dir():
        found = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    else:
        found = {"a": path.read_bytes()} if path.exists() else None
    old, new = (OLD, NEW) if what == "folder" else ({"a": OLD["a"]}, {"a": NEW["a"]})
    if found is None:
        return "none"
    return "old" if found == old else "new" if found == new else "mixed"


def case(name, *kills):
    folder = root / name
    folder.mkdir()
    write(folder / "x", OLD)
    died = [killed(at, folder / "x", NEW) for at in kills]
    before = state(folder / "x")
    storage.recover(folder / "x")
    after = state(folder / "x")
    write(folder / "x", NEW)
    left = sorted(os.listdir(folder))
    print(json.dumps([list(kills), died, before, after, state(folder / "x"), left]))
    return died[0]


at = 1
while case(str(at), at):
    at += 1
for first in range(1, at):
    for second in range(1 + first % 5, at + 8, 5):
        case(f"{first}-{second}", first, second)
"""


def python(code: str, *args: str) -> str:
    home = Path(storage.__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(home)}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("what", ["file", "folder"])
def test_killed_before_every_call(what: str, swap: str, tmp_path: Path) -> None:
    """And once more while the next run, which cleans up after the first, writes."""
    cases = [json.loads(line) for line in python(KILLS, str(tmp_path), what, swap).splitlines()]
    once = [case for case in cases if len(case[0]) == 1]
    assert [died for _, (died,), *_ in once] == [True] * (len(once) - 1) + [False]
    assert len(once) > {"file": 7, "folder": 15}[what]
    for kills, _, before, after, finally_, left in cases:
        allowed = (
            ("old", "new", "none") if (what, swap) == ("folder", "two renames") else ("old", "new")
        )
        assert before in allowed, kills
        assert after in ("old", "new"), kills
        assert finally_ == "new", kills
        assert left == ["x"], kills
    states = [before for _, _, before, *_ in once]
    order = {"old": 0, "none": 1, "new": 2}
    assert states == sorted(states, key=order.__getitem__)
    assert states[0] == "old"
    if (what, swap) == ("folder", "two renames"):
        assert states.count("none") == 1  # the gap that `recover` closes


def test_temporary_files_of_the_living_stay(tmp_path: Path) -> None:
    with contextlib.ExitStack() as alive:
        storage._temporary(str(tmp_path), alive, folder_wanted=False)
        storage._temporary(str(tmp_path), alive, folder_wanted=True)
        write_file(tmp_path / "f", b"")
        assert len(temporary(tmp_path)) == 2
    write_file(tmp_path / "f", b"")
    assert os.listdir(tmp_path) == ["f"]


def test_cleaning_follows_no_link(tmp_path: Path) -> None:
    write_folder(tmp_path / "kept", OLD)
    work = tmp_path / "work"
    stale = work / ".minift-tmp-0000000000000000"
    (stale / "inner").mkdir(parents=True)
    (stale / "inner" / "l").symlink_to(tmp_path / "kept")
    (work / ".minift-tmp-1111111111111111").symlink_to(tmp_path / "kept")
    write_file(work / "f", b"")
    assert content(tmp_path / "kept") == OLD
    assert (stale / "inner" / "l").is_symlink()  # no writer of minift's makes a folder in a folder
    assert len(temporary(work)) == 2


def test_names_that_only_begin_like_temporary_ones_are_left_alone(tmp_path: Path) -> None:
    for name in (".minift-tmp-notes", ".minift-tmp-", ".minift-tmp-0123456789abcdeg", "0" * 16):
        (tmp_path / name).write_bytes(b"mine")
    before = sorted(os.listdir(tmp_path))
    write_file(tmp_path / "f", b"")
    storage.recover(tmp_path / "f")
    write_folder(tmp_path / "d", OLD)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "d", "f"])


def test_a_folder_is_replaced_only_where_the_caller_knows_its_files(tmp_path: Path) -> None:
    def refuse(path: str) -> None:
        assert path == str(tmp_path / "d")
        raise ConfigError("not mine")

    write_folder(tmp_path / "d", OLD)
    with pytest.raises(ConfigError, match="not mine"):
        write_folder(tmp_path / "d", NEW, overwrite=True, ours=refuse)
    assert content(tmp_path / "d") == OLD
    assert os.listdir(tmp_path) == ["d"]


def test_what_comes_into_a_folder_while_it_is_replaced_is_kept(swap: str, tmp_path: Path) -> None:
    def meanwhile(written: str) -> None:
        (tmp_path / "d" / "notes.csv").write_bytes(b"mine")

    write_folder(tmp_path / "d", OLD)
    with pytest.warns(Notice, match="is kept in .*minift-kept-"):
        write_folder(tmp_path / "d", NEW, overwrite=True, then=meanwhile)
    assert content(tmp_path / "d") == NEW
    (kept,) = tmp_path.glob("minift-kept-*")
    assert content(kept) == {"notes.csv": b"mine"}
    write_file(tmp_path / "f", b"")  # the next writer cleans up
    assert content(kept) == {"notes.csv": b"mine"}


def test_a_place_that_can_be_written_is_found_out_without_a_trace(tmp_path: Path) -> None:
    probe(tmp_path / "a" / "b" / "c")
    probe(tmp_path)
    assert not os.listdir(tmp_path)
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("file/x", "file/x/y", "loop/x"):
        with pytest.raises(StorageError, match="cannot write"):
            probe(tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_found_before_anything_is_written(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in (1, 2, 3):
        with monkeypatch.context() as patch:
            calls = Calls(patch)
            calls.fail_at, calls.error = at, error
            with pytest.raises(StorageError) as caught:
                probe(tmp_path / "x")
        assert os.strerror(error) in str(caught.value)
        assert not os.listdir(tmp_path)


# ---- lines, space, reading -----------------------------------------------------------------------


def test_append_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, '{"step": 1}')
    append_line(path, "ä")
    assert path.read_bytes() == '{"step": 1}\nä\n'.encode()
    path.write_bytes(b'{"step": 1}\n{"st')
    append_line(path, '{"step": 2}')
    assert path.read_bytes() == b'{"step": 1}\n{"st\n{"step": 2}\n'
    for text in ("a\nb", "a\r", "\n"):
        with pytest.raises(ValueError, match="one line"):
            append_line(path, text)


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, "one")
    with monkeypatch.context() as patch:
        Calls(patch).short = True
        with pytest.raises(StorageError, match="No space left"):
            append_line(path, "two")
    append_line(path, "three")
    assert path.read_bytes() == b"one\nthree\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_append_to_a_full_disk() -> None:
    with pytest.raises(StorageError, match="/dev/full: cannot write: No space left on device"):
        append_line("/dev/full", "x")


# ---- a file that grows over several calls --------------------------------------------------------


def test_extend_and_settle(tmp_path: Path) -> None:
    partial, whole = tmp_path / "new" / "x.incomplete", tmp_path / "new" / "x"
    extend(partial, 0, b"")
    assert partial.read_bytes() == b""
    extend(partial, 0, [b"abc", memoryview(b"def")])
    extend(partial, 2, b"CD")  # in the middle: the rest stays
    assert partial.read_bytes() == b"abCDef"
    extend(partial, 6, chunks())
    whole.write_bytes(b"old")
    settle(partial, whole)
    assert whole.read_bytes() == b"abCDef" + b"".join(chunks())
    assert os.listdir(tmp_path / "new") == ["x"]
    assert stat.S_IMODE(whole.stat().st_mode) == 0o666 & ~umask()


def test_what_has_arrived_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.incomplete"

    def cut() -> Iterator[bytes]:
        yield b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend(path, 0, cut())
    assert path.read_bytes() == b"first"

    def full(call: Callable[..., Any], *args: Any) -> Any:
        if call is os.write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_io", full)
        with pytest.raises(StorageError, match="No space left on device; what has arrived is kept"):
            extend(path, 5, b"second")
    assert path.read_bytes() == b"first"
    with pytest.raises(StorageError, match="cannot write"):
        settle(tmp_path / "absent", tmp_path / "x")


def test_a_partial_file_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "x").symlink_to("target")
    with pytest.raises(StorageError):
        settle(tmp_path / "x", tmp_path / "y")


def test_link(tmp_path: Path) -> None:
    blob, other = tmp_path / "blobs" / "b", tmp_path / "blobs" / "o"
    blob.parent.mkdir()
    blob.write_bytes(b"content")
    other.write_bytes(b"other")
    place = tmp_path / "deep" / "er" / "name"
    link(place, blob)
    assert os.readlink(place) == os.path.join("..", "..", "blobs", "b")
    link(place, blob)
    link(place, other)
    assert place.read_bytes() == b"other"
    other.unlink()
    link(place, blob)  # one that leads nowhere is replaced, too
    assert place.read_bytes() == b"content"
    plain = tmp_path / "plain"
    plain.write_bytes(b"a file of its own")
    link(plain, blob)  # somebody put the file itself there: as good as a link
    assert plain.read_bytes() == b"a file of its own"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.EACCES])
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def symlink(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "symlink", symlink)
    blob, place = tmp_path / "b", tmp_path / "s" / "name"
    blob.write_bytes(b"content")
    if code == errno.EACCES:  # links could be made, but not by us
        with pytest.raises(StorageError, match="Permission denied"):
            link(place, blob)
        assert blob.exists()
        return
    link(place, blob)
    assert place.read_bytes() == b"content"
    assert not blob.exists()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_free_space(tmp_path: Path) -> None:
    free_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(StorageError, match=r"needs [\d,.]+ MB, and this disk has [\d,.]+ MB left"):
        free_space(tmp_path, 1 << 60)


def test_map_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    assert map_file(path) == b""
    path.write_bytes(b"12345")
    data = map_file(path)
    assert data[1:3] == b"23"
    data[0:1] = b"x"  # type: ignore[index]
    assert path.read_bytes() == b"12345"


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, and Linux's way to count")
def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 1 << 40)
    data = map_file(path)
    assert len(data) == 1 << 40
    data[1 << 39 : (1 << 39) + 1] = b"x"  # type: ignore[index]
    assert data[1 << 39] == ord("x")


def test_read_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_file(path, limit_bytes=5) == b"12345"
    with pytest.raises(FormatError) as caught:
        read_file(path, limit_bytes=4)
    assert caught.value.code == "too-large"


@pytest.mark.parametrize("path", ["missing", "", "a\0b", "pipe", "."])
def test_what_cannot_be_read(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (map_file, lambda p: read_file(p, limit_bytes=9)):
        with pytest.raises(FormatError) as caught:
            read(os.path.join(tmp_path, path))
        assert caught.value.code == "bad-path"
        assert "\n" not in str(caught.value)


def test_two_writers_may_make_the_same_folder(tmp_path, monkeypatch):
    """A folder that appears between the look and the making is no error; a file in its place is."""
    real = os.mkdir
    monkeypatch.setattr(os, "mkdir", lambda path, *rest: (real(path, *rest), real(path, *rest)))
    write_file(tmp_path / "a" / "b" / "file", b"text")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"text"
    monkeypatch.undo()
    (tmp_path / "c").write_text("a file")
    with pytest.raises(StorageError):
        write_file(tmp_path / "c" / "file", b"text")


@pytest.mark.parametrize("there", [False, True])
def test_what_looks_at_the_finished_may_refuse_it(tmp_path: Path, there: bool) -> None:
    seen = []

    def refuse(written: str) -> None:
        place = Path(written)
        seen.append({p.name: p.read_bytes() for p in place.iterdir()} if place.is_dir()
                    else place.read_bytes())  # fmt: skip
        raise ConfigError("no")

    if there:
        write_file(tmp_path / "file", b"old")
        write_folder(tmp_path / "folder", {"a": b"old"})
    with pytest.raises(ConfigError, match="no"):
        write_file(tmp_path / "file", [b"n", b"ew"], then=refuse)
    with pytest.raises(ConfigError, match="no"):
        write_folder(tmp_path / "folder", {"a": b"new"}, overwrite=True, then=refuse)
    assert seen == [b"new", {"a": b"new"}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"] * there
    if there:
        assert (tmp_path / "file").read_bytes() == (tmp_path / "folder/a").read_bytes() == b"old"
