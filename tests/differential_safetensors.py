"""minift's reader of safetensors against the safetensors package, on mutated files.

    python tests/differential_safetensors.py --count 200000 [--seed 1]

Needs that package, and pytest. Every file goes to both readers. Where both take it, they must find
the same tensors, byte for byte. What only minift refuses must be of a class that ONLY_OURS in
formats/test_safetensors.py lists; what only the package refuses must not be. Each file listed
there must still be one of those, and all of that module's good and bad ones are tried, too.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, deserialize

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from hostile import tests_of  # noqa: E402

from minift.errors import FormatError  # noqa: E402
from minift.formats import safetensors  # noqa: E402

cases = tests_of("formats/test_safetensors")
CLASSES = {(code, where) for _, code, where in cases.ONLY_OURS.values()}

Found = dict[str, tuple[list[int], bytes]]  # shape and bytes


def ours(data: bytes) -> Found | FormatError:
    safetensors.map_file = lambda path: bytearray(data)  # type: ignore[assignment]
    found: Found = {}
    try:
        file = safetensors.read("memory")
        for name in file.tensors:
            tensor = file.load(name)
            raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
            found[name] = list(tensor.shape), bytes(raw)
    except FormatError as error:
        return error
    return found


def theirs(data: bytes) -> Found | SafetensorError:
    try:
        return {name: (t["shape"], bytes(t["data"])) for name, t in deserialize(data)}
    except SafetensorError as error:
        return error


def files(count: int, seed: int) -> Iterator[bytes]:
    yield from cases.GOOD.values()
    yield from (data for data, _ in cases.BAD.values())
    draw = random.Random(seed)
    for _ in range(count):
        yield cases.mutated(draw)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="mutated files")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    both, only = Counter[str](), Counter[tuple[str, str]]()
    wrong = []
    for name, (data, code, _) in cases.ONLY_OURS.items():
        mine, other = ours(data), theirs(data)
        if not isinstance(mine, FormatError) or mine.code != code or not isinstance(other, dict):
            wrong.append(f"{name}: minift says {mine}, the package {other}"[:300])
    for data in files(options.count, options.seed):
        mine, other = ours(data), theirs(data)
        if isinstance(mine, FormatError):
            if isinstance(other, SafetensorError):
                both["refused by both"] += 1
                continue
            row = next(
                (row for row in CLASSES if row[0] == mine.code and mine.where.startswith(row[1])),
                None,
            )
            both["refused by minift only"] += 1
            if row is None:
                wrong.append(f"a class that is not on the list: {mine}: {data[:300]!r}")
            else:
                only[row] += 1
        elif isinstance(other, SafetensorError):
            both["refused by the package only"] += 1
            wrong.append(f"the package refuses: {other}: {data[:300]!r}")
        else:
            both["taken by both"] += 1
            if mine != other:
                wrong.append(f"taken with other tensors: {data[:300]!r}")
    for what in ("taken by both", "refused by both", "refused by minift only"):
        print(f"{both[what]:>9,}  {what}")
    for (code, where), count in only.most_common():
        names = [name for name, (_, c, w) in cases.ONLY_OURS.items() if (c, w) == (code, where)]
        print(f"{count:>17,}  {code} in {where}: {', '.join(names)}")
    print(f"{both['refused by the package only']:>9,}  refused by the package only")
    print("\n".join(wrong[:20]), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
