"""A run's folder: what a run writes, whether it may, and what of an older run gives way.

    run.json, metrics.jsonl, adapter/    of a run; replaced if told, and only if minift wrote them
    model/                               in place of adapter/ where no adapter is trained; a run's
                                         own only where run.json says so
    .minift-run                          the lock of a run that is going on, gone when it ends

Whatever else is in the folder stays there. The system gives a lock back when its process ends,
however that was, so a dead run's holds nobody up.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from minift import __version__
from minift.checkpoints.save import as_json, save
from minift.errors import ConfigError, FormatError, StorageError, notice, one_line
from minift.formats import strict_json
from minift.formats.overwrite import (
    ADAPTER,
    ADAPTER_FOLDER,
    METRICS,
    MODEL,
    MODEL_FOLDER,
    RUN,
    check_files,
    foreign,
    names_in,
)  # fmt: skip
from minift.interop.adapter_files import save_adapter
from minift.kernels.quantized.linear import base_of, numbers
from minift.model.transformer import Transformer
from minift.peft.adapters import active, config_of, trainable
from minift.runtime import peak_memory
from minift.storage import append_line, free_space, probe, write_file
from minift.tokenizers.interface import Tokenizer
from minift.train.step import Progress, Run

try:
    import fcntl
except ImportError:  # Windows: no such locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".minift-run"
RECORDED = 4096  # evaluations in run.json, which stays small; metrics.jsonl has all
NAMES = {ADAPTER_FOLDER: ADAPTER, MODEL_FOLDER: MODEL}  # of files in the folders of weights
_held: dict[str, int] = {}  # folders that this process holds -> the thread that does


def check_out(out: str | os.PathLike[str], overwrite: bool) -> Path:
    """The run's folder, not made yet.

    Raises ConfigError where a run or anything else is in it, unless `overwrite`, and where a file
    by minift's names is somebody else's; StorageError where the folder cannot be written.
    """
    path = Path(out)
    shown = one_line(str(path), 200)
    if os.path.lexists(path) and not os.path.isdir(path):  # pathlib's raises for a long name
        raise ConfigError(f"out: {shown} is a file, allowed a folder")
    found = set(names_in(path)) if os.path.isdir(path) else set()
    own = [name for name in (RUN, METRICS, ADAPTER_FOLDER) if name in found]
    if MODEL_FOLDER in found and owns_model(path):
        own.append(MODEL_FOLDER)
    for name in own:
        check_own(path, name)
    if own and not overwrite:
        raise ConfigError(f"out: {shown} holds a run already; choose another, or --overwrite")
    others = sorted(found - {*own, LOCK})
    if others and not overwrite:
        raise ConfigError(
            f"out: {shown} holds {one_line(others[0])}, which minift did not write; choose another "
            "--out, or --overwrite to put the run beside it"
        )
    probe(path)
    return path


def check_own(folder: Path, name: str) -> None:
    """Raise ConfigError unless `name`, which is in the folder, is what a run of minift left."""
    place = folder / name
    mode = os.lstat(place).st_mode
    if name in NAMES and stat.S_ISDIR(mode):
        check_files(place, NAMES[name])
        return
    if name in NAMES or not stat.S_ISREG(mode) or not is_record(place):
        raise not_ours(folder, name)


def not_ours(folder: Path, name: str) -> ConfigError:
    return ConfigError(
        f"out: {one_line(str(folder), 200)} holds {name}, which minift did not write; "
        "choose another --out"
    )


def is_record(path: Path) -> bool:
    """Whether a file is a run.json or a metrics.jsonl of minift's, by what is in it."""
    if path.name == RUN:
        try:
            versions = strict_json.read(path).get("versions")
        except FormatError:
            return False
        return isinstance(versions, dict) and "minift" in versions
    try:
        with open(path, "rb") as file:
            line = file.readline(10_000)
    except OSError:  # not ours to read
        return False
    try:
        first = json.loads(line) if line else {"step": 0, "steps": 0, "loss": 0}
    except (ValueError, RecursionError):
        return not line.endswith(b"\n") and line.startswith(b'{"step": ')  # torn
    return isinstance(first, dict) and {"step", "steps", "loss"} <= first.keys()


def owns_model(folder: Path) -> bool:
    """True if run.json says that model/ is its run's: minift.save writes the very same files."""
    try:
        return strict_json.read(folder / RUN).get("weights") == MODEL_FOLDER
    except FormatError:
        return False


@contextmanager
def claim(out: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """The run's folder, made, and nobody else's until the end; what is in it stays as it is.

    Raises ConfigError where another run has it, in this process or in another, and as `check_out`
    does. The thread that has it may claim it again. A folder that is empty at the end, and was not
    there before, is gone.
    """
    path, key, me = Path(out), os.path.realpath(out), threading.get_ident()
    if _held.get(key) == me:
        yield check_out(path, overwrite)
        return
    if key in _held:
        raise busy(path, os.getpid())
    with contextlib.ExitStack() as undo:
        if os.path.lexists(path):
            lock(path, undo)  # first: a run that is going on is what there is to say
            check_out(path, overwrite)
        else:
            check_out(path, overwrite)
            make(path, undo)
            lock(path, undo)
        _held[key] = me
        undo.callback(_held.pop, key)
        yield path


def make(path: Path, undo: contextlib.ExitStack) -> None:
    """Make the folder and those above it; at the end, the ones that are empty go again."""
    missing = [path, *path.parents]
    missing = missing[: [os.path.isdir(folder) for folder in missing].index(True)]
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:  # another run made it a moment ago
            continue
        except OSError as error:
            raise ConfigError(f"out: {path} cannot be written: {error.strerror}") from None
        undo.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def lock(path: Path, undo: contextlib.ExitStack) -> None:
    """Hold the folder's lock until the end, with this process's id in it, and remove it then."""
    if fcntl is None or not os.path.isdir(path):
        return
    place = path / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            fd = os.open(place, flags, 0o666)
        except OSError as error:
            raise ConfigError(f"out: {path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 20, 0).decode(errors="replace").strip()
            os.close(fd)
            raise busy(path, text) from None
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == os.stat(place).st_ino:
                break
        os.close(fd)  # the run before removed it between our two calls
    undo.callback(os.close, fd)
    if not re.fullmatch(rb"[0-9]*\n?", os.pread(fd, 30, 0)):
        raise not_ours(path, LOCK)
    undo.callback(_unlink, place)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _unlink(place: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(place)


def busy(path: Path, process: object) -> ConfigError:
    return ConfigError(
        f"out: another run writes {one_line(str(path), 200)}, process {process}; "
        "wait for it, or choose another --out"
    )


# ---- the weights ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainableFiles:
    """What training changes, as a folder of files."""

    folder: str  # its name in the run's folder, and what the files are: an adapter, a model
    size: int  # bytes, about
    write: Callable[[Path], None]  # whole or not at all, over an older one


def trainable_files(model: Transformer, tokenizer: Tokenizer | None) -> TrainableFiles | None:
    """What is saved of a run: the active adapter; without one, the whole model and its tokenizer.

    None where no adapter is active and there is no tokenizer to write beside the model.
    """
    if active(model) is not None:
        size = sum(p.numel() * p.element_size() for p in trainable(model).values())
        return TrainableFiles(
            ADAPTER_FOLDER, size, lambda path: save_adapter(model, path, overwrite=True)
        )
    if tokenizer is None:
        return None
    size = numbers(model) * model.embed.weight.element_size()
    return TrainableFiles(
        MODEL_FOLDER, size, lambda path: save(model, tokenizer, path, overwrite=True)
    )


@dataclass
class RunFiles:
    """What a run writes into its folder: weights, run.json and metrics.jsonl."""

    out: Path
    model: Transformer
    run: Run
    weights: TrainableFiles | None  # None where no weights are written
    facts: Callable[[], dict[str, object]]  # what else run.json says

    @property
    def folder(self) -> Path | None:
        """Of the weights."""
        return None if self.weights is None else self.out / self.weights.folder

    def log(self, progress: Progress) -> None:
        """A line of metrics.jsonl."""
        row = {name: finite_or_none(value) for name, value in asdict(progress).items()}
        append_line(self.out / METRICS, json.dumps(row, allow_nan=False))

    def write_weights(self) -> None:
        """The weights that the model has, over older ones."""
        assert self.weights is not None
        folder = self.out / self.weights.folder
        if folder.name == MODEL_FOLDER and not folder.exists():
            self.write_record()  # which says whose the model/ is, should the run end now
        make_room(folder)
        self.weights.write(folder)

    def write_record(self) -> None:
        facts = record(self.model, self.run, self.weights) | self.facts()
        write_file(self.out / RUN, as_json(facts))


def check_weights(out: Path, files: TrainableFiles | None) -> None:
    """Raise ConfigError where the run's model/ is somebody else's; say where no weights are saved.

    Anything may be beside a run's files with --overwrite, but not in their place.
    """
    if files is None:
        notice(out, "no weights are written here, as no adapter is attached: minift.save them")
        return
    there = files.folder == MODEL_FOLDER and os.path.lexists(out / MODEL_FOLDER)
    if there and not owns_model(out):
        raise not_ours(out, MODEL_FOLDER)


def open_files(
    out: Path, model: Transformer, run: Run, tokenizer: Tokenizer | None,
    facts: Callable[[], dict[str, object]],
) -> RunFiles:  # fmt: skip
    """The files of a run that begins. Raises as `check_weights`, and StorageError where the disk
    has no room for the weights: now, not after hours of training."""
    weights = trainable_files(model, tokenizer)
    check_weights(out, weights)
    free_space(out, 2 * (weights.size if weights else 0))
    return RunFiles(out, model, run, weights, facts)


def make_room(weights: Path) -> None:
    """Move what came into the folder of weights while its run goes on into a folder beside it.

    A file browser or a person may put something there; it must neither be lost nor cost the run.
    """
    if not os.path.isdir(weights):
        return
    beside, moved = weights.parent / f"minift-kept-{secrets.token_hex(8)}", []
    try:
        while (name := foreign(weights, NAMES[weights.name])) is not None:
            beside.mkdir(exist_ok=True)
            os.rename(weights / name, beside / name)
            moved.append(name)
    except OSError as error:
        raise StorageError(weights, f"cannot write: {error.strerror}", error.errno) from None
    if moved:
        notice(weights, f"{', '.join(moved)} came in while the run went on, and is in {beside} now")


def clear(path: Path) -> None:
    """Remove an older run's records and weights, all of which `check_out` has let through."""
    folders = [ADAPTER_FOLDER, *[MODEL_FOLDER] * owns_model(path)]
    try:
        for folder in (path / name for name in folders):
            if os.path.isdir(folder):
                check_files(folder, NAMES[folder.name])
                for name in os.listdir(folder):
                    if NAMES[folder.name].fullmatch(name):
                        (folder / name).unlink()
                folder.rmdir()
        for name in (RUN, METRICS):
            (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be written: {error.strerror}") from None


# ---- the record ----------------------------------------------------------------------------------


def record(model: Transformer, run: Run, files: TrainableFiles | None) -> dict[str, object]:
    """What run.json says."""
    method = config_of(model)
    methods = {type(method).__name__: asdict(method)} if method is not None else {}  # type: ignore[call-overload]
    counts = {name: p.numel() for name, p in trainable(model).items()}
    return {
        "model": model.source,
        "methods": methods,
        "trainable": sum(counts.values()),
        "parameters": numbers(model),
        "base": base_of(model) or "dense",
        "config": asdict(run.config),
        "ended": run.ended,
        "steps": run.steps,
        "planned_steps": run.planned,
        "final_loss": finite_or_none(run.losses[-1]) if run.losses else None,
        "held_out": [
            {"step": s, "loss": finite_or_none(x)} for s, x in run.evaluations[-RECORDED:]
        ],
        "best_step": run.best_step,
        "kept_step": run.kept_step,
        "weights": None if files is None else files.folder,
        "skipped_steps": run.skipped,
        "tokens": run.tokens,
        "seconds": round(run.seconds, 3),
        "peak_memory_bytes": peak_memory(),
        "interrupted": run.interrupted,
        "versions": {
            "minift": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "device": str(model.embed.weight.device),
        "machine": platform.machine(),
    }


def finite_or_none(value: float | None) -> float | None:
    """The number; None where it is NaN or infinite, which JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None
