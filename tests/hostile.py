"""Every hostile file of the tests, each read in a process of its own: python tests/hostile.py

A test module that has such files offers them as `hostile()`: name -> (what reads one in a folder,
the code of the refusal). Each must be refused with that code by FormatError, ConfigError or
DataError, and in one line, which may have a list below it; in under a second of the processor's
time, and with less than 64 MB more than the process had before. No file here is much over a
megabyte, unless most of it is a hole. tests/test_hostile.py runs the same without the processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from minift.errors import ConfigError, DataError, FormatError, Notice  # noqa: E402
from minift.tokenizers.chat import Unwritten  # noqa: E402

SECONDS, MEGABYTES, HUNG = 1.0, 64, 20
FORMATS = {
    "safetensors": (
        *("formats/test_safetensors", "formats/test_weight_index"),
        "checkpoints/test_shards",
    ),
    "GGUF": (
        *("formats/test_gguf", "checkpoints/test_gguf_model", "formats/test_gguf_split"),
        "tokenizers/test_vocabulary",
    ),
    "PyTorch": (
        *("formats/test_torch_zip", "formats/test_torch_records"),
        "formats/test_stored_zip",
    ),
    "tokenizer": (
        *("tokenizers/test_tokenizer_json", "tokenizers/test_wordpiece_json"),
        *("tokenizers/test_tokenizer_class", "checkpoints/test_tokenizers"),
        "tokenizers/jinja/test_render",
    ),
    "sentencepiece": (
        *("tokenizers/test_piece_model", "tokenizers/test_piece_json"),
        "tokenizers/test_piece_settings",
    ),
    "configuration": (
        *("checkpoints/test_families", "checkpoints/test_rope_parts", "checkpoints/test_open"),
        *("formats/test_placeholder", "checkpoints/test_tensor_names"),
    ),
    "adapters": ("interop/test_adapter_files", "interop/test_adalora"),
    "run folders": ("cli/test_run_file", "study/test_verify", "tokenizers/test_text_format"),
    "data": ("data/test_read",),
    "any JSON": ("formats/test_strict_json",),
}

Case = tuple[Callable[[Path], object], str]


@cache
def tests_of(name: str) -> ModuleType:
    """A test module by its path; its fixtures are of no use here, its data is."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def cases_of(form: str) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for module in FORMATS[form]:
        here = tests_of(module).hostile()
        found |= {f"{module.partition('test_')[2]}: {name}": case for name, case in here.items()}
    return found


def refusal(attempt: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    """(the code, the message) of what reading raised; ("", what happened) where that is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", Notice)  # what a file says before it is refused
            attempt(folder)
    except (FormatError, ConfigError, DataError) as error:
        text = str(error)
        names = {ConfigError: "config", Unwritten: "config", DataError: "data"}
        code = names.get(type(error), type(error).__name__)
        code = error.code if isinstance(error, FormatError) else code
        first, *more = text.split("\n")
        if not first or len(first) > 1000 or not all(line.startswith("  ") for line in more):
            return "", f"not one line, with a list or none: {text[:200]!r}"
        if not all(line.isprintable() for line in (first, *more)):
            return "", f"control characters in {text[:200]!r}"
        return code, first
    except BaseException:
        return "", "another error: " + traceback.format_exc(limit=-2).replace("\n", " ")
    return "", "it was taken"


def apart(attempt: Callable[[Path], object], folder: Path) -> tuple[str, str, float, float]:
    """(code, message, seconds, megabytes) of one case in a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(HUNG)
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        code, text = refusal(attempt, folder)
        seconds = time.process_time() - begin
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(writing, json.dumps([code, text[:2000], seconds, grown]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not answer:
        return "", f"the process died of {status}", 0.0, 0.0
    return tuple(json.loads(answer))


def main() -> int:
    torch.set_num_threads(1)
    wrong: list[str] = []
    total = 0
    print(f"{'format':<14} {'cases':>5}  {'slowest':>7}  {'most':>6}  refused as")
    for form in FORMATS:
        codes, slowest, most = Counter[str](), 0.0, 0.0
        cases = cases_of(form)
        with tempfile.TemporaryDirectory() as place:
            # What is loaded or allocated once is loaded now, in this process.
            refusal(next(iter(cases.values()))[0], Path(tempfile.mkdtemp(dir=place)))
            for name, (attempt, expected) in cases.items():
                folder = Path(tempfile.mkdtemp(dir=place))
                code, text, seconds, megabytes = apart(attempt, folder)
                codes[code or "NOT REFUSED"] += 1
                slowest, most = max(slowest, seconds), max(most, megabytes)
                if code != expected:
                    wrong.append(f"{form}, {name}: {code or 'not refused'}, {text}")
                if seconds > SECONDS or megabytes > MEGABYTES:
                    wrong.append(f"{form}, {name}: {seconds:.2f} s, {megabytes:.0f} MB")
        shown = ", ".join(f"{code} {count}" for code, count in codes.most_common())
        print(f"{form:<14} {len(cases):>5}  {slowest:5.2f} s  {most:3.0f} MB  {shown}", flush=True)
        total += len(cases)
    print(f"{total:,} hostile files, {len(wrong)} of them not refused as they should be")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
