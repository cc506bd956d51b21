"""How much memory does loading take, and how long does opening take?

    python benchmarks/memory.py

Loading: SmolLM2 from each file format to each dtype, each in a fresh process. A thread reads the
process's own memory (RssAnon: what the system cannot take back; pages of a mapped file it can)
every half millisecond. The peak above what was there before is compared with one copy of the
weights in the asked dtype plus the largest tensor in float32, which is what it may take.

Opening: a safetensors file of 10 GB, sparse, to its list of tensors. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

SLACK = 48 << 20  # bytes: modules imported on the way, the tokenizer's tables, the allocator's rest
GIANT = 10 << 30


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("no RssAnon in /proc/self/status: Linux only")


def worker(path: str, dtype: str) -> None:
    import torch

    import minift
    from minift.checkpoints.open import load_model

    torch.set_num_threads(2)
    torch.randn(64, 64) @ torch.randn(64, 64)  # what the first product allocates is not loading
    assert minift.load
    base, peak, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, own_memory())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    model = load_model(path, dtype=dtype)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    sizes = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    largest = max(p.numel() for p in model.parameters()) * 4
    print(json.dumps({
        "peak_bytes": peak - base, "one_copy_bytes": sum(sizes.values()),
        "largest_tensor_float32_bytes": largest, "seconds": round(seconds, 3),
    }))  # fmt: skip


def opening(folder: Path) -> dict[str, object]:
    """A header over zeros that were never written."""
    from minift.formats import safetensors

    path, count = folder / "giant.safetensors", 64
    each = GIANT // count
    header = json.dumps({
        f"w{i}": {"dtype": "F32", "shape": [each // 4], "data_offsets": [i * each, (i + 1) * each]}
        for i in range(count)
    }).encode()  # fmt: skip
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + GIANT)
    before, times = own_memory(), []
    for _ in range(20):
        begin = time.perf_counter()
        found = safetensors.read(path)
        times.append(time.perf_counter() - begin)
        assert len(found.tensors) == count
    return {
        "file_bytes": path.stat().st_size,
        "bytes_on_disk": path.stat().st_blocks * 512,
        "median_ms": round(statistics.median(times) * 1000, 2),
        "most_ms": round(max(times) * 1000, 2),
        "memory_grown_bytes": own_memory() - before,
    }


def main() -> None:
    from peer import told

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import torch
    from certificate import write

    import minift
    from minift.checkpoints.hub.assets import cached
    from minift.formats import safetensors

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    gguf = cached("smollm2-135m-instruct")
    if gguf is None:
        sys.exit("smollm2-135m-instruct is not in the cache: minift download smollm2-135m-instruct")
    loads = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer = minift.load(gguf)
        minift.save(model, tokenizer, folder / "hf")
        (folder / "bin").mkdir()
        file = safetensors.read(folder / "hf" / "model.safetensors")
        tensors = {name: file.load(name).clone() for name in file.tensors}
        torch.save(tensors, folder / "bin" / "pytorch_model.bin")
        (folder / "bin" / "config.json").write_bytes((folder / "hf" / "config.json").read_bytes())
        del model, tensors
        for name, path in {
            "gguf": gguf,
            "safetensors": folder / "hf",
            "bin": folder / "bin",
        }.items():
            for dtype in ("float32", "bf16"):
                command = [sys.executable, __file__, "--worker", str(path), dtype]
                row = told(command)
                allowed = row["one_copy_bytes"] + row["largest_tensor_float32_bytes"] + SLACK
                row["within"] = row["peak_bytes"] <= allowed
                loads[f"{name} to {dtype}"] = row
                print(f"{name} to {dtype}: {row}", flush=True)
        result = {"loading": loads, "opening": opening(folder)}
    print(result["opening"])
    print(write("memory", result, options.out))
    if not all(row["within"] for row in loads.values()):
        sys.exit("loading took more than one copy and one tensor")


if __name__ == "__main__":
    worker(*sys.argv[2:4]) if sys.argv[1:2] == ["--worker"] else main()
