"""The one place that touches files: whole or not at all.

    write:  temporary name in the same folder -> all bytes -> fsync -> rename -> fsync of the folder

The rename is the commit: before it the old content stands, after it the new one does, whatever
kills the process or the machine in between. Temporary files are locked while their writer lives, so
the next writer in that folder can tell what a dead one left behind, and removes it.

Every call that changes the disk goes through `_io`, which counts; with MINIFT_CRASH_AT=k in the
environment the process kills itself before the k-th one. The tests do that for every k.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import secrets
import signal
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minift.errors import ConfigError, FormatError, StorageError, notice, one_line

try:
    import fcntl
except ImportError:  # Windows: no locks, so nothing that another run left behind is cleaned
    fcntl = None  # type: ignore[assignment]

Chunks = bytes | Iterable[bytes | memoryview]
Check = Callable[[str], object]

_TMP, _DEAD = ".minift-tmp-", ".minift-dead-"  # fixed length: the target's name may fill 255 bytes
_HEX = frozenset("0123456789abcdef")  # the rest of such a name: 16 of them
_PIECE = 8 << 20  # bytes handed to one write call
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# What a file system that has no links answers; Windows says EINVAL, Python without them nothing.
_NO_LINKS = (None, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
# TRAP: Linux sets memory aside for a private mapping as if all of it would be written to, and so
# refuses a file larger than the machine's memory; MAP_NORESERVE (mman.h) says not to.
_KNOWN = sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64")
_UNRESERVED = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000) if _KNOWN else 0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h

_operations = 0


def _io(call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)`, counted: the seam where the tests kill the process or fail the call."""
    global _operations
    _operations += 1
    if os.environ.get("MINIFT_CRASH_AT") == str(_operations):
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args)


# ---- writing -------------------------------------------------------------------------------------


def write_file(path: str | os.PathLike[str], chunks: Chunks, *, then: Check | None = None) -> None:
    """Make `path` hold `chunks`, replacing a file that is there, or leave it as it was.

    `then` is given the finished file under its temporary name; what it raises undoes all.
    """
    target = _resolve(path)
    with _reported(target) as done, contextlib.ExitStack() as held:
        old = _status(target)
        if old is not None and not stat.S_ISREG(old.st_mode):
            raise ConfigError(f"{one_line(target, 200)}: exists and is not a plain file")
        folder = _prepare(target, chunks if isinstance(chunks, bytes) else b"")
        tmp, fd = _temporary(folder, held, folder_wanted=False)
        try:
            _write_all(fd, chunks)
            if old is not None:
                _io(os.chmod, tmp, stat.S_IMODE(old.st_mode))
            _io(os.fsync, fd)
            if then is not None:
                then(tmp)
            _io(os.replace, tmp, target)
        except BaseException:
            _remove(tmp)
            raise
        done()
        _sync_folder(folder)


def write_folder(
    path: str | os.PathLike[str],
    files: Mapping[str, Chunks],
    *,
    overwrite: bool = False,
    ours: Check | None = None,
    then: Check | None = None,
) -> None:
    """Make `path` a folder of exactly these files, or leave what was there as it was.

    `then` is given the finished folder under its temporary name; what it raises undoes all.
    An existing folder is replaced only with `overwrite`, only if it holds nothing but plain files,
    and only where `ours` lets it through: it raises for files that minift did not write. What comes
    into the folder between that check and its end is kept, in a folder beside it.
    """
    target = _resolve(path)
    for name in files:
        if name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name:
            raise ConfigError(f"{one_line(target, 200)}: {one_line(name)} is not a plain file name")
    with _reported(target) as done, contextlib.ExitStack() as held:
        folder = _prepare(target, *(data for data in files.values() if isinstance(data, bytes)))
        recover(target)
        old = _status(target)
        known = []
        if old is not None:
            known = _replaceable(target, old, overwrite)
            if ours is not None:
                ours(target)
        tmp, fd = _temporary(folder, held, folder_wanted=True)
        try:
            for name, chunks in files.items():
                _write_new(os.path.join(tmp, name), chunks)
            if old is not None:
                _io(os.chmod, tmp, stat.S_IMODE(old.st_mode))
            _fsync_folder(fd)
            if then is not None:
                then(tmp)
            outdated = _put_in_place(tmp, target, held) if old is not None else None
            if old is None:
                _io(os.rename, tmp, target)
        except BaseException:
            _remove(tmp)
            raise
        done()
        _sync_folder(folder)
        if outdated is not None:
            _remove_known(outdated, known, target)


def extend(path: str | os.PathLike[str], at: int, chunks: Chunks) -> None:
    """Write `chunks` into `path` from byte `at` on. What has arrived stays when the rest fails.

    For a file that grows over several calls and whose name says so; `settle` gives it its own name.
    Written by position and never cut: two writers whose locks do not work do no harm with it.
    """
    target = _resolve(path)
    with _reported(target, kept="what has arrived is kept"):
        _prepare(target)
        fd = _io(os.open, target, os.O_WRONLY | os.O_CREAT | _SAFE, 0o666)
        try:
            os.lseek(fd, at, os.SEEK_SET)
            _write_all(fd, chunks)
        finally:
            os.close(fd)


def settle(partial: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Make the finished file `partial` last, then give it the name `path` in the same folder."""
    target = _resolve(path)
    with _reported(target, kept="what has arrived is kept") as done:
        fd = os.open(partial, os.O_RDWR | _SAFE)
        try:
            _io(os.fsync, fd)
        finally:
            os.close(fd)
        _io(os.replace, partial, target)
        done()
        _sync_folder(os.path.dirname(target))


def link(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make `path` a relative link to the file `target`; a link that is there is replaced.

    Where links cannot be made (FAT, Windows without the right), the file itself moves to `path`.
    """
    place = os.path.abspath(path)
    with _reported(place) as done:
        folder = _prepare(place)
        text = os.path.relpath(target, folder)
        if os.path.islink(place):
            if os.readlink(place) == text:
                return
            _io(os.unlink, place)
        try:
            _io(os.symlink, text, place)
        except FileExistsError:
            if not os.path.isfile(place):
                raise
        except (OSError, NotImplementedError) as problem:
            if getattr(problem, "errno", None) not in _NO_LINKS:
                raise
            _io(os.replace, target, place)
        done()
        _sync_folder(folder)


def append_line(path: str | os.PathLike[str], text: str) -> None:
    """Add `text` and a line end to `path` in one write; a torn last line of a dead run is ended.

    Not synced to the disk: a log line is not worth the wait, and a snapshot stores its own offset.
    """
    if "\n" in text or "\r" in text:
        raise ValueError(f"append_line takes one line, got {one_line(text)}")
    target = os.fspath(path)
    with _reported(target):
        fd = _io(os.open, target, os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFE, 0o666)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and _last_byte(fd, size) != b"\n"
            line = f"{chr(10) if torn else ''}{text}\n".encode()
            try:
                if _io(os.write, fd, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with contextlib.suppress(OSError):
                    _io(os.ftruncate, fd, size)  # half a line is worse than none
                raise
        finally:
            os.close(fd)


def free_space(path: str | os.PathLike[str], needed: int) -> None:
    """Raise StorageError if the disk that holds `path` has less than `needed` bytes left."""
    folder = os.path.abspath(os.fspath(path))
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    if not hasattr(os, "statvfs"):  # Windows: the write itself will say
        return
    disk = os.statvfs(folder)
    left = disk.f_bavail * disk.f_frsize
    if left < needed:
        text = f"needs {needed / 1e6:,.1f} MB, and this disk has {left / 1e6:,.1f} MB left"
        raise StorageError(path, text, errno.ENOSPC)


def recover(path: str | os.PathLike[str]) -> None:
    """Put back a folder that a dead run had moved away, or delete it if its successor is there.

    Only where folders cannot be exchanged in one step (see `_put_in_place`) is there ever one. Call
    this before saying that a folder is missing.
    """
    target = _resolve(path)
    folder = os.path.dirname(target)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _made_from(_dead_prefix(target), name):
                dead = os.path.join(folder, name)
                with contextlib.ExitStack() as held:
                    if _lock(dead, held) is None:
                        continue
                    if _status(target) is None:
                        _io(os.rename, dead, target)
                    else:
                        _remove(dead)


def cache_dir() -> Path:
    """$MINIFT_CACHE, else $XDG_CACHE_HOME/minift, else ~/.cache/minift. Not created here."""
    if own := os.environ.get("MINIFT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path there is to be ignored.
    root = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return root / "minift"


# ---- reading -------------------------------------------------------------------------------------


def map_file(path: str | os.PathLike[str]) -> mmap.mmap | bytes:
    """The whole file, mapped privately: what is written to the map never reaches the file.

    An empty file cannot be mapped and comes back as b"". Only plain files are opened: a pipe would
    wait for ever. `mmap.size()` asks the system again, so a file cut short later can be noticed.
    """
    fd, size = _open_plain(path)
    try:
        if _UNRESERVED and size:
            return mmap.mmap(fd, size, _UNRESERVED, mmap.PROT_READ | mmap.PROT_WRITE)
        return mmap.mmap(fd, size, access=mmap.ACCESS_COPY) if size else b""
    except (OSError, ValueError) as problem:
        raise FormatError(path, "file", problem, "a file that can be mapped", "bad-path") from None
    finally:
        os.close(fd)


def read_file(path: str | os.PathLike[str], *, limit_bytes: int) -> bytes:
    """The bytes of a small file (configuration, vocabulary); one over the limit is not read."""
    fd, size = _open_plain(path)
    with os.fdopen(fd, "rb") as file:
        if size > limit_bytes:
            allowed = f"at most {limit_bytes:,} bytes"
            raise FormatError(path, "file size", f"{size:,} bytes", allowed, "too-large")
        try:
            return file.read(limit_bytes)
        except OSError as problem:
            text = os.strerror(problem.errno or 0)
            raise FormatError(path, "file", text, "a readable file", "bad-path") from None


def _open_plain(path: str | os.PathLike[str]) -> tuple[int, int]:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (_SAFE & ~getattr(os, "O_NOFOLLOW", 0))
    try:
        fd = os.open(path, flags)
        status = os.fstat(fd)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        number = getattr(problem, "errno", None)
        found = os.strerror(number) if number else str(problem)
        raise FormatError(path, "file", found, "an existing, readable file", "bad-path") from None
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise FormatError(path, "file", "not a plain file", "a plain file", "bad-path")
    return fd, status.st_size


# ---- the parts -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _reported(path: str, kept: str = "what was there is unchanged") -> Iterator[Callable[[], None]]:
    """Turn an OSError into one StorageError line that says whether the old content still stands."""
    committed = False

    def done() -> None:
        nonlocal committed
        committed = True

    try:
        yield done
    except StorageError:
        raise
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        text = f"written, but the disk did not confirm it: {reason}"
        if not committed:
            text = f"cannot write: {reason}; {kept}"
        raise StorageError(path, text, problem.errno) from problem


def _resolve(path: str | os.PathLike[str]) -> str:
    """The absolute path with links followed: a link keeps pointing at what it pointed at."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ConfigError(f"{one_line(text)!r} is not a path that can be written")
    return os.path.realpath(text)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _replaceable(target: str, old: os.stat_result, overwrite: bool) -> list[str]:
    """The names in a folder that may be replaced, all of plain files."""
    shown = one_line(target, 200)
    if not stat.S_ISDIR(old.st_mode):
        raise ConfigError(f"{shown}: exists and is not a folder")
    if os.path.samefile(target, os.getcwd()):  # whoever stands in it would stand in nothing
        raise ConfigError(f"{shown}: is the current folder, allowed another one")
    found = sorted(os.listdir(target))
    if found and not overwrite:
        raise ConfigError(f"{shown}: exists; choose another name or ask to overwrite it")
    for name in found:
        if not stat.S_ISREG(os.lstat(os.path.join(target, name)).st_mode):
            inside = one_line(name)
            raise ConfigError(f"{shown}: holds {inside}, which is no plain file; not overwritten")
    return found


def probe(path: str | os.PathLike[str]) -> None:
    """Find out whether `path` can be written, in the nearest folder that is there; nothing stays.

    Raises StorageError for a disk that is full or read-only, a folder without permission, a file
    in the way.
    """
    target = _resolve(path)
    with _reported(target, kept="choose another place"):
        folder = target if os.path.isdir(target) else os.path.dirname(target)
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        name = os.path.join(folder, _TMP + secrets.token_hex(8))
        fd = _io(os.open, name, _CREATE | _SAFE, 0o666)
        try:
            _write_all(fd, bytes(4096))
            _io(os.fsync, fd)  # only then has a disk been asked for the room
        finally:
            os.close(fd)
            _remove(name)


def _prepare(target: str, *known: bytes) -> str:
    """The folder of `target`, made if need be, cleaned, with room for the sizes that are known."""
    folder = os.path.dirname(target)
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another writer made it a moment ago
            _io(os.mkdir, path)
        _sync_folder(os.path.dirname(path))
    folder = os.path.dirname(target)
    _clean(folder)
    if known:
        free_space(target, sum(len(data) for data in known))
    return folder


def _clean(folder: str) -> None:
    """Remove the temporary entries in `folder` whose writer is dead."""
    if fcntl is None:
        return
    for name in os.listdir(folder):
        if _made_from(_TMP, name):
            stale = os.path.join(folder, name)
            with contextlib.ExitStack() as held, contextlib.suppress(OSError):
                if _lock(stale, held) is not None:
                    _remove(stale)


def _dead_prefix(target: str) -> str:
    """How a replaced folder's name begins while its successor is not in place yet."""
    digest = hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()
    return f"{_DEAD}{digest[:16]}-"


def _temporary(folder: str, held: contextlib.ExitStack, *, folder_wanted: bool) -> tuple[str, int]:
    """A new, locked entry in `folder`: its path and a descriptor that `held` will close."""
    while True:
        path = os.path.join(folder, _TMP + secrets.token_hex(8))
        if folder_wanted:
            _io(os.mkdir, path)
            fd = _lock(path, held)
        else:
            fd = _io(os.open, path, _CREATE | _SAFE, 0o666)
            fd = _hold(fd, held)
        # A cleaner may have taken the lock between the two calls, and with it the entry.
        if fd is not None and os.path.exists(path):
            return path, fd


def _lock(path: str, held: contextlib.ExitStack) -> int | None:
    """A locked descriptor of `path`, or None if its writer is alive."""
    return _hold(os.open(path, os.O_RDONLY | _SAFE | getattr(os, "O_NONBLOCK", 0)), held)


def _hold(fd: int, held: contextlib.ExitStack) -> int | None:
    held.callback(os.close, fd)
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            pass  # a file system without locks
    return fd


def _write_new(path: str, chunks: Chunks) -> None:
    fd = _io(os.open, path, _CREATE | _SAFE, 0o666)
    try:
        _write_all(fd, chunks)
        _io(os.fsync, fd)
    finally:
        os.close(fd)


def _write_all(fd: int, chunks: Chunks) -> None:
    for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
        view = memoryview(chunk)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # an empty one cannot be cast
        while view:  # write may take less than it was given, most of all on a disk almost full
            view = view[_io(os.write, fd, view[:_PIECE]) :]


def _put_in_place(tmp: str, target: str, held: contextlib.ExitStack) -> str:
    """Let `tmp` take the place of the folder `target`; returns where the replaced one is now."""
    if _exchange is not None and _io(_exchange, tmp, target):
        return tmp
    # Two renames, and between them no target: `recover` closes that gap after a kill. The lock
    # tells it that this run is alive.
    dead = os.path.join(os.path.dirname(target), _dead_prefix(target) + secrets.token_hex(8))
    _lock(target, held)
    _io(os.rename, target, dead)
    try:
        _io(os.rename, tmp, target)
    except OSError:
        _io(os.rename, dead, target)
        raise
    return dead


def _find_exchange() -> Callable[[str, str], bool] | None:
    """renameat2(RENAME_EXCHANGE), where the C library has it: two names swap in one step."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None

    def exchange(one: str, other: str) -> bool:
        names = os.fsencode(one), os.fsencode(other)
        if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # this file system cannot
            return False
        raise OSError(number, os.strerror(number))

    return exchange


_exchange = _find_exchange()


def _made_from(prefix: str, name: str) -> bool:
    """Whether a temporary name is minift's own: the prefix, then 16 random digits."""
    rest = name[len(prefix) :]
    return name.startswith(prefix) and len(rest) == 16 and set(rest) <= _HEX


def _remove(path: str) -> None:
    """Delete a temporary file, or a folder and the plain files that minift put there.

    Never follows a link, never goes deeper, never raises: minift's folders have no folders inside.
    """
    with contextlib.suppress(OSError):
        status = _status(path)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            _io(os.unlink, path)
            return
        inside = [os.path.join(path, name) for name in os.listdir(path)]
        if all(stat.S_ISREG(os.lstat(name).st_mode) for name in inside):
            for name in inside:
                _io(os.unlink, name)
            _io(os.rmdir, path)


def _remove_known(outdated: str, known: list[str], target: str) -> None:
    """Delete a replaced folder: the files that were checked. What else is in it by now is kept."""
    with contextlib.suppress(OSError):
        for name in known:
            _io(os.unlink, os.path.join(outdated, name))
        if not os.listdir(outdated):
            _io(os.rmdir, outdated)
            return
        # Under its temporary name the next writer would take it for what a dead one left behind.
        kept = os.path.join(os.path.dirname(target), f"minift-kept-{secrets.token_hex(8)}")
        _io(os.rename, outdated, kept)
        notice(target, f"what came into it while it was replaced is kept in {kept}")


def _sync_folder(folder: str) -> None:
    """Make the names in `folder` last; without it a rename may be lost with the power."""
    if os.name == "nt":  # folders cannot be opened there
        return
    fd = os.open(folder, os.O_RDONLY | _SAFE)
    try:
        _fsync_folder(fd)
    finally:
        os.close(fd)


def _fsync_folder(fd: int) -> None:
    try:
        _io(os.fsync, fd)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise


def _last_byte(fd: int, size: int) -> bytes:
    os.lseek(fd, size - 1, os.SEEK_SET)
    return os.read(fd, 1)
