"""What is in which shard: `model.safetensors.index.json`, `pytorch_model.bin.index.json`.

    {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", ...},
     "metadata": {"total_size": 13476831232, ...}}

Layout source: the transformers documentation, "Sharded checkpoints". A shard's name must be a plain
file name of the index's own format: a path could lead anywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from minift.errors import FormatError, one_line
from minift.formats import strict_json

END = ".index.json"
INDEX_LIMIT = 16 << 20  # bytes
SHARD_LIMIT = 1000  # each is an open file
TENSOR_LIMIT = 100_000
NAME_LIMIT = 200  # bytes


@dataclass(frozen=True)
class WeightIndex:
    path: Path
    homes: dict[str, str]  # tensor -> the name of its shard, in the order of the file
    total: int | float | None  # bytes of all tensors, where it is said

    @property
    def files(self) -> list[str]:
        """Each shard once."""
        return sorted(set(self.homes.values()))


def read(path: str | os.PathLike[str]) -> WeightIndex:
    """Read an index and judge every name in it. Raises FormatError, and nothing else."""
    path = Path(path)
    index = strict_json.read(path, limit_bytes=INDEX_LIMIT)
    for key in index:
        if key not in ("weight_map", "metadata"):
            raise FormatError(path, "JSON", key, "weight_map and metadata", "unknown-field")
    homes, metadata = index.get("weight_map"), index.get("metadata", {})
    if homes is None:
        raise FormatError(path, "JSON", "no weight_map", "weight_map", "missing-field")
    if type(homes) is not dict or not set(map(type, homes.values())) <= {str}:
        found = type(homes).__name__ if type(homes) is not dict else "other values"
        raise FormatError(path, "weight_map", found, "an object of texts", "bad-type")
    if not 1 <= len(homes) <= TENSOR_LIMIT:
        found, allowed = f"{len(homes):,} tensors", f"1 to {TENSOR_LIMIT:,}"
        raise FormatError(path, "weight_map", found, allowed, "limit")
    if type(metadata) is not dict:
        raise FormatError(path, "metadata", metadata, "an object", "bad-type")
    total = metadata.get("total_size")
    if total is not None and type(total) not in (int, float):
        raise FormatError(path, "total_size", total, "a number", "bad-type")
    found_index = WeightIndex(path, homes, total)
    if len(found_index.files) > SHARD_LIMIT:
        found = f"{len(found_index.files):,} shards"
        raise FormatError(path, "weight_map", found, f"at most {SHARD_LIMIT:,}", "limit")
    for name in found_index.files:
        if problem := _problem(name, path.name):
            found, allowed = f"{one_line(name, 40)!r}, {problem}", "plain names of shards"
            raise FormatError(path, "weight_map", found, allowed, "bad-path")
    return found_index


def _problem(name: str, index: str) -> str | None:
    """What is wrong with a shard's name, if anything."""
    end = "." + index.removesuffix(END).rpartition(".")[2]
    if not 1 <= len(name.encode()) <= NAME_LIMIT:
        return f"{len(name.encode()):,} bytes"
    if set(name) & set('/\\:*?"<>|') or name.startswith("."):
        return "a path or a hidden file"
    if not name.isprintable():
        return "a control character"
    return None if name.endswith(end) else f"which does not end in {end}"
