"""Seconds that transformers takes from a GGUF file (or a folder) to the first logits.

    python benchmarks/peers/hf_load.py MODEL [--ids 1,2,3] [--threads 2]

Prints one JSON line: import_torch_s, import_transformers_s (torch already there), load_s,
first_logits_s, total_s (all four), peak_rss_mb, argmax (of the last position), versions.
Run it in a fresh process each time; the first run of a machine also reads the files from disk.
"""

import argparse
import json
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--ids", default="504,3575,282,4649,314", help="comma-separated token ids")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    ticks = [time.perf_counter()]

    import torch

    torch.set_num_threads(args.threads)
    ticks.append(time.perf_counter())

    import transformers
    from transformers import AutoModelForCausalLM

    ticks.append(time.perf_counter())
    if args.model.suffix == ".gguf":
        source, file = args.model.parent, args.model.name
    else:
        source, file = args.model, None
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    ticks.append(time.perf_counter())
    with torch.no_grad():
        logits = model(torch.tensor([[int(id) for id in args.ids.split(",")]])).logits
    best = int(logits[0, -1].argmax())
    ticks.append(time.perf_counter())

    names = ("import_torch_s", "import_transformers_s", "load_s", "first_logits_s")
    out = {name: ticks[i + 1] - ticks[i] for i, name in enumerate(names)}
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    out |= {"total_s": ticks[-1] - ticks[0], "peak_rss_mb": peak[0] if peak else 0.0}
    out |= {"argmax": best}
    out["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
