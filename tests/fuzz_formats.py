"""Mutated files by the hundred thousand: python tests/fuzz_formats.py --count 100000 [--seed 1]

Every reader gets `count` files that were valid once; anything but a FormatError that leaves it is a
bug, and so are a second for one file and memory that grows. Where the safetensors package is
installed, a file that it refuses and minift takes is a bug too. Not collected by pytest, which runs
a few thousand of the same files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from minift.checkpoints import gguf, safetensors, strict_json, torch_zip  # noqa: E402
from minift.errors import FormatError  # noqa: E402
from minift.tokenizers.sentencepiece import SentencePiece  # noqa: E402

try:
    from safetensors import SafetensorError, deserialize
except ImportError:
    deserialize = None


def tests_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, next(HERE.rglob(f"{name}.py")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_json(data: bytes) -> None:
    value = strict_json.parse(data, "memory", "JSON", limit_bytes=1 << 20)
    assert value == json.loads(data)


def reader_of(module: ModuleType) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        module.map_file = lambda path: bytearray(data)
        file = module.read("memory")
        for name in file.tensors:
            file.load(name)

    return read


def read_safetensors(data: bytes) -> None:
    reader_of(safetensors)(data)
    if deserialize is not None:
        try:
            deserialize(data)
        except SafetensorError as error:
            raise AssertionError(f"the safetensors package refuses: {error}") from None


def read_pieces(data: bytes) -> None:
    tokenizer = SentencePiece.from_model(data, None, "memory")
    ids = tokenizer.encode("the ﬁrst \t text é")  # in C++, which must never see what is wrong
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tokenizer.decode(ids)


def fuzz(make: Callable[[random.Random], bytes], read: Callable, count: int, seed: int) -> Counter:
    random_, codes = random.Random(seed), Counter[str]()
    for i in range(count):
        data = make(random_)
        begin = time.perf_counter()
        try:
            read(data)
            codes["taken"] += 1
        except FormatError as error:
            codes[error.code] += 1
        except BaseException:
            print(f"file {i} of seed {seed}: {data!r}", file=sys.stderr)
            raise
        if time.perf_counter() - begin > 1:
            sys.exit(f"file {i} of seed {seed} took over a second: {data!r}")
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="files for each reader")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    readers = {
        "test_strict_json": read_json,
        "test_safetensors": read_safetensors,
        "test_gguf": reader_of(gguf),
        "test_torch_zip": reader_of(torch_zip),
        "test_piece_model": read_pieces,
    }
    for name, read in readers.items():
        make = tests_of(name).mutated
        fuzz(make, read, min(options.count, 1000), 0)  # what is allocated once is allocated now
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        codes = fuzz(make, read, options.count, options.seed)
        rate = options.count / (time.perf_counter() - begin)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        shown = ", ".join(f"{code} {n:,}" for code, n in codes.most_common())
        print(f"{name.removeprefix('test_')}: {options.count:,} files, {rate:,.0f}/s: {shown}")
        if grown > 64:
            sys.exit(f"memory grew by {grown:.0f} MiB")


if __name__ == "__main__":
    main()
