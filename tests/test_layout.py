"""The house rules that no checker knows: where things are, who imports whom, what is never used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from minift import PUBLIC
from minift.cli.commands import COMMANDS
from minift.cli.options import dataclasses_of

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "minift").rglob("*.py"))
SOURCES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
LAYERS = (
    {"errors", "storage", "runtime"}, {"kernels"}, {"model"}, {"tokenizers", "formats"},
    {"checkpoints"}, {"data", "generation"}, {"peft"}, {"interop"}, {"train"}, {"study"}, {"cli"},
)  # fmt: skip
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FOREIGN = {"transformers", "peft", "trl", "datasets", "safetensors", "tokenizers", "requests"}
ALLOWED = {
    "minift/tokenizers/interface.py": "a protocol: mypy holds the tokenizers against it",
    "minift/train/objectives/protocol.py": "a protocol: mypy holds the objectives against it",
}


def imports(name):
    """Dotted names that a file imports, those under `if TYPE_CHECKING` too."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def docstring_only(tree):
    return all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in tree.body)


def test_every_file_has_its_test():
    missing = []
    for name, tree in TREES.items():
        path = Path(name).relative_to("minift")
        if path.name in ("__init__.py", "__main__.py") or docstring_only(tree) or name in ALLOWED:
            continue
        twin = Path("tests") / path.parent / f"test_{path.name}"
        if not (ROOT / twin).exists():
            missing.append(str(twin))
    assert not missing, f"{len(missing)} missing: {' '.join(missing)}"
    assert not [name for name in ALLOWED if name not in TREES], "ALLOWED names a file that is gone"


@pytest.mark.parametrize("name", [n for n in TREES if n.count("/") > 1 or n[7:-3] in RANK])
def test_imports_go_one_way(name):
    own = Path(name).parts[1].removesuffix(".py")
    upward = []
    for target in imports(name):
        parts = target.split(".")
        if parts[0] == "minift" and len(parts) > 1 and parts[1] in RANK:
            if RANK[parts[1]] > RANK[own]:
                upward.append(target)
        elif parts[0] == "minift":
            assert parts[1:] == ["__version__"], f"{name} imports {target}"
    assert not upward


def test_no_two_files_import_each_other():
    """Nor in a wider circle, whenever the imports are run: each file is read before its users."""
    names = {name[:-3].replace("/", ".").removesuffix(".__init__"): name for name in TREES}
    needs = {
        name: {
            names[part]
            for target in imports(name)
            for part in (target, target.rpartition(".")[0])
            if part in names and (part == target or target not in names)
        }
        - {name}
        for name in TREES
    }
    del needs["minift/__init__.py"]  # lazy: it gives names, and every file imports it
    while free := [name for name, used in needs.items() if not used & set(needs)]:
        for name in free:
            del needs[name]
    # What is left is in a circle or uses one; those that nobody left uses are not in it.
    while idle := [name for name in needs if not any(name in used for used in needs.values())]:
        for name in idle:
            del needs[name]
    assert not needs, "a circle among " + ", ".join(sorted(needs))


def test_every_package_has_its_place():
    packages = {Path(name).parts[1].removesuffix(".py") for name in TREES}
    assert packages - {"__init__", "__main__"} == set(RANK)


def test_no_public_name_is_a_package():
    # Importing a package binds its name in minift, over a function of the same name.
    packages = {path.name.removesuffix(".py") for path in (ROOT / "minift").iterdir()}
    assert not set(PUBLIC) & packages


@pytest.mark.parametrize("name", TREES)
def test_a_file_is_named_after_what_it_does(name):
    bad = {"utils", "util", "common", "helpers", "base", "core", "manager", "misc"}
    assert not bad & {part.removesuffix(".py") for part in Path(name).parts}


@pytest.mark.parametrize("name", TREES)
def test_nothing_foreign_is_imported(name):
    assert not FOREIGN & {target.split(".")[0] for target in imports(name)}


@pytest.mark.parametrize("name", TREES)
def test_nothing_in_a_file_can_be_executed(name):
    assert not re.search(r"\bpickle\b|\btorch\.load\b|(?<![.\w])(eval|exec)\(", code(name))


def code(name):
    """A file's text without docstrings and comments; `eval` is a command's function."""
    return ast.unparse(stripped(TREES[name])).replace("def eval(", "")


def stripped(tree):
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0] = ast.Pass()
    return tree


@pytest.mark.parametrize("name", [n for n in TREES if n.startswith("minift/model/")])
def test_the_model_knows_of_no_method(name):
    assert not re.search(r"lora|adapter|prefix|ia3", SOURCES[name], re.IGNORECASE)


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import minift", {"torch", "numpy", "socket", "urllib.request", "tqdm"}),
        ("from minift.cli.main import main; main(['--help'])", {"torch", "numpy", "socket"}),
    ],
)
def test_importing_and_helping_cost_nothing(program, unwanted):
    tail = "; import sys, threading; print(); print(threading.active_count(), *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program + tail], capture_output=True, text=True, check=True
    )
    threads, *modules = done.stdout.splitlines()[-1].split()
    assert threads == "1"
    assert not unwanted & set(modules)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_flags_of_a_command_share_a_name(command):
    names = [flag.name for flag in COMMANDS[command].options]
    assert len(names) == len(set(names))


def configs():
    """Every dataclass whose fields are options, and ModelConfig."""
    specs = {spec for command in COMMANDS.values() for spec in command.configs}
    for _, kind in dataclasses_of(sorted(specs | {"minift.model.config:ModelConfig"})):
        yield kind


@pytest.mark.parametrize("kind", list(configs()), ids=lambda kind: kind.__name__)
def test_every_config_field_is_read_somewhere(kind):
    assert is_dataclass(kind)
    reads = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert not {item.name for item in fields(kind)} - reads
