"""Logits and greedy continuations of given token ids by transformers.

    python benchmarks/peers/hf_logits.py MODEL IDS.json OUT.npz [--adapter FOLDER] ...

MODEL is a .gguf file (dequantised to float32) or a Hugging Face folder. IDS.json holds
{"prompts": [[ids], ...], "positions": [[places], ...]}; without "positions" (which may count from
the end) every position is kept (--positions last: the last one of each prompt).

In the npz, for prompt i:
    tokens.i (T,)   positions.i (n,)   logits.i (n, V) float32
    continuation.i (up to --new-tokens,)   greedy: no sampling, no penalty, ends at --eos if given
"""

import argparse
import json
from pathlib import Path

import numpy
import torch
import transformers
from hf_sft import load_adapter, load_base
from transformers import GenerationConfig

LIMIT = 200_000_000  # bytes of logits


@torch.no_grad()
def logits_of(model, prompt, positions):
    """(n, V) float32: one row per place, without the logits of the others."""
    ids = torch.tensor([prompt])
    hidden = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return model.lm_head(hidden.last_hidden_state[0, positions]).float().numpy()


@torch.no_grad()
def continuation(model, prompt, length, eos):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=length,
            eos_token_id=eos or None,
            pad_token_id=0,
        ),
    )
    return out[0, len(prompt) :].numpy()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", type=Path, help="PEFT folder, left unmerged")
    parser.add_argument("--positions", choices=("all", "last"), default="all")
    parser.add_argument("--new-tokens", type=int, default=40, help="0: no continuations")
    parser.add_argument("--eos", type=int, action="append", help="id that ends; may be repeated")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    job = json.loads(args.ids.read_text())
    prompts = job["prompts"]
    if args.positions == "last":
        chosen = [[-1]] * len(prompts)
    else:
        chosen = job.get("positions") or [list(range(len(prompt))) for prompt in prompts]
    chosen = [[p % len(ids) for p in places] for places, ids in zip(chosen, prompts, strict=True)]

    model = load_base(args.model, getattr(torch, args.dtype)).eval()
    size = sum(map(len, chosen)) * model.config.vocab_size * 4
    if size > LIMIT:
        parser.error(f"{size:,} bytes of logits, at most {LIMIT:,}: choose fewer positions")
    if args.adapter:
        model = load_adapter(model, args.adapter).eval().get_base_model()
    if args.dtype == "float64":
        import hf_exact

        hf_exact.exact(model)
    model.generation_config = GenerationConfig()  # nothing inherited from the file

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    out = {"versions": numpy.array(json.dumps(versions))}
    for i, (prompt, places) in enumerate(zip(prompts, chosen, strict=True)):
        out[f"tokens.{i}"] = numpy.array(prompt)
        out[f"positions.{i}"] = numpy.array(places)
        out[f"logits.{i}"] = logits_of(model, prompt, places)
        if args.new_tokens:
            out[f"continuation.{i}"] = continuation(model, prompt, args.new_tokens, args.eos)
    numpy.savez(args.out, **out)
    print(f"{len(prompts)} prompts, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
