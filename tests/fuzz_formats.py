"""Mutated files by the hundred thousand: python tests/fuzz_formats.py --count 100000

Every reader gets `count` files that were valid once; anything but a FormatError that leaves it is a
bug (of what fuzz_folders.py makes, a ConfigError or DataError is right too), and so are a second
for one file and memory that grows. Each reader has a process of its own, two at a time. Not
collected by pytest, which runs a few thousand of the same files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from fuzz_folders import KINDS  # noqa: E402
from hostile import MEGABYTES, SECONDS, tests_of  # noqa: E402

from minift.errors import ConfigError, DataError, FormatError  # noqa: E402
from minift.formats import gguf, safetensors, strict_json, torch_zip, weight_index  # noqa: E402
from minift.tokenizers.sentencepiece import SentencePiece  # noqa: E402

PROCESSES = 2
SLOWER = 10  # times: files of a kind of fuzz_folders.py are fewer by that
MOST = 200_000  # and no more than that: some are read at sixty a second
Read = Callable[[Any], object]


def read_json(data: bytes) -> None:
    value = strict_json.parse(data, "memory", "JSON", limit_bytes=1 << 20)
    assert value == json.loads(data)


def reader_of(module: ModuleType) -> Read:
    def read(data: bytes) -> None:
        module.map_file = lambda path: bytearray(data)
        file = module.read("memory")
        for name in file.tensors:
            file.load(name)

    return read


def read_index(data: bytes) -> None:
    strict_json.read_file = lambda path, limit_bytes: data  # type: ignore[assignment]
    weight_index.read("model.safetensors.index.json")


def read_pieces(data: bytes) -> None:
    tokenizer = SentencePiece.from_model(data, None, "memory")
    ids = tokenizer.encode("the ﬁrst \t text é")  # in C++, which must never see what is wrong
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tokenizer.decode(ids)


def read_tokenizer(data: bytes) -> None:
    tests_of("tokenizers/test_tokenizer_json").read_mutated(data)


def read_template(data: bytes) -> None:
    tests_of("tokenizers/jinja/test_render").read_mutated(data)


# The module that makes the files, and what reads them. The slowest first, for the two processes.
READERS: dict[str, Read] = {
    "formats/test_torch_zip": reader_of(torch_zip),
    "tokenizers/test_tokenizer_json": read_tokenizer,
    "tokenizers/test_piece_model": read_pieces,
    "tokenizers/jinja/test_render": read_template,
    "formats/test_safetensors": reader_of(safetensors),
    "formats/test_gguf": reader_of(gguf),
    "formats/test_weight_index": read_index,
    "formats/test_strict_json": read_json,
}


def fuzz(make: Callable[[random.Random], Any], read: Read, count: int, seed: int,
         right: tuple[type[Exception], ...] = (FormatError,)) -> Counter[str]:  # fmt: skip
    draw, codes = random.Random(seed), Counter[str]()
    for i in range(count):
        data = make(draw)
        begin = time.process_time()
        try:
            read(data)
            codes["taken"] += 1
        except right as error:
            text = str(error)
            lines = text.split("\n")
            if len(lines[0]) > 1000 or not all(line.isprintable() for line in lines):
                raise AssertionError(f"file {i:,} of seed {seed}: {text!r}") from error
            codes[getattr(error, "code", type(error).__name__)] += 1
        except BaseException as error:
            raise AssertionError(f"file {i:,} of seed {seed}: {data!r}") from error
        if time.process_time() - begin > SECONDS:
            raise AssertionError(f"file {i:,} of seed {seed} took over a second: {data!r}")
    return codes


def result_of(task: tuple[str, int, int]) -> dict[str, Any]:
    """Fuzz one reader; -> what happened."""
    name, count, seed = task
    torch.set_num_threads(1)
    if name in KINDS:
        (make, read), right = KINDS[name], (FormatError, ConfigError, DataError)
    else:
        make, read, right = tests_of(name).mutated, READERS[name], (FormatError,)
    fuzz(make, read, min(count, 1000), 0, right)  # what is allocated once is allocated now
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    codes = fuzz(make, read, count, seed, right)
    rate = count / (time.perf_counter() - begin)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > MEGABYTES:
        raise AssertionError(f"{name}: memory grew by {grown:.0f} MiB")
    return {
        "reader": name.partition("test_")[2],
        "files": count,
        "files_a_second": round(rate),
        "grown_mib": round(grown),
        "codes": dict(codes.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=50_000, help="files for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the folder of a result file, fuzz.json")
    parser.add_argument("--only", help="one of the readers")
    options = parser.parse_args()
    fewer = min(MOST, max(1, options.count // SLOWER))
    tasks = [(name, fewer if name in KINDS else options.count, options.seed)
             for name in (*KINDS, *READERS) if options.only in (None, name)]  # fmt: skip
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(PROCESSES, maxtasksperchild=1) as pool:
        found = []
        for result in pool.imap_unordered(result_of, tasks):
            shown = ", ".join(f"{code} {n:,}" for code, n in result["codes"].items())
            print(
                f"{result['reader']}: {result['files']:,} files, {result['files_a_second']:,}/s, "
                f"{result['grown_mib']} MiB more: {shown}",
                flush=True,
            )
            found.append(result)
    if options.out is not None:
        sys.path.insert(0, str(HERE.parent / "benchmarks"))
        from certificate import write

        print(write("fuzz", {"seed": options.seed, "readers": found}, options.out))


if __name__ == "__main__":
    main()
