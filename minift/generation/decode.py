"""Batched decoding: prompts are padded on the left, read once, and go on token by token.

Equal prompts are one row until the first token is drawn, and then as many as were asked. Finished
rows leave the batch. A row ends at a stop token, at a stop string (which is cut off), or
after `max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, overload

import torch

from minift.errors import ConfigError, one_line
from minift.generation import fixed
from minift.generation.cache import KVCache
from minift.generation.prepared import prepared
from minift.generation.sampling import Sampling, adjust, draw
from minift.model.transformer import Transformer
from minift.runtime import tuned, unrouted
from minift.tokenizers import chat
from minift.tokenizers.bos import encode_with_bos
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.stream import TextStream

Emit = Callable[[int, int], object]  # (row, token), as soon as a token is there


@torch.no_grad()
def decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: frozenset[int] = frozenset(),
    sampling: Sampling | None = None,
    finished: Callable[[int, list[int]], bool] = lambda row, ids: False,
    emit: Emit = lambda row, token: None,
    graph: bool = False,
) -> list[list[int]]:
    """New ids of every prompt, the stop token left out. Rows of any length, none empty.

    `finished(row, ids)` may end a row after any token; `emit` hears of each token that counts.
    `graph`: a token's pass is one CUDA graph (fixed.py); ConfigError where it cannot be.
    """
    if graph:
        fixed.check(model)
    config = sampling or Sampling()
    longest = max(map(len, prompts), default=0)
    check(model, prompts, longest, max_new_tokens)
    if not prompts:
        return []
    device = model.embed.weight.device
    dtype = model.embed.weight.dtype
    first, of = alike(model, prompts)
    capacity = longest + max_new_tokens - 1  # nothing follows the last
    cache = KVCache(model.config, len(first), capacity, dtype=dtype, device=device)
    cache.rows = torch.tensor(first)
    tokens = torch.zeros(len(first), longest, dtype=torch.long)
    mask = torch.zeros(len(first), longest, dtype=torch.bool)
    for i, ids in enumerate(prompts[row] for row in first):
        tokens[i, longest - len(ids) :] = torch.tensor(ids)
        mask[i, longest - len(ids) :] = True
    tokens, mask = tokens.to(device), mask.to(device)
    penalized = config.repetition_penalty != 1
    seen = torch.zeros(len(prompts) if penalized else 0, model.config.vocab, dtype=torch.bool)
    for i in range(len(seen)):
        seen[i, torch.tensor(prompts[i])] = True
    seen = seen.to(device)
    generator = torch.Generator(device).manual_seed(config.sampling_seed)
    out: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch is
    was = model.training
    model.eval()
    with ExitStack() as after:
        after.callback(model.train, was)
        ready = after.enter_context(prepared(model, max_new_tokens))
        hidden = model(tokens, mask=mask, cache=cache, hidden_only=True)[:, -1]  # (B, D)
        if len(first) < len(prompts):
            every = torch.tensor(of, device=device)
            hidden = hidden[every]
            cache.select(every)
        cache.rows = torch.arange(len(prompts))
        proceed = fixed.FixedPass(model, cache) if graph else fixed.GrowingPass(model, cache)
        for step in range(max_new_tokens):
            logits = ready.logits(hidden)  # (B, V)
            if penalized or config.temperature > 0:
                logits = adjust(logits.float(), seen, config)
            next_tokens = draw(logits, config, generator)  # (B,)
            if penalized:
                seen.scatter_(1, next_tokens[:, None], True)
            going = []
            for i, token in enumerate(next_tokens.tolist()):
                if token in stop:
                    continue
                out[rows[i]].append(token)
                emit(rows[i], token)
                if not finished(rows[i], out[rows[i]]):
                    going.append(i)
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(rows):
                kept = torch.tensor(going, device=device)
                proceed.select(kept)
                next_tokens = next_tokens[kept]
                seen = seen[kept] if penalized else seen
                rows = [rows[i] for i in going]
            with unrouted(ready.whole or len(rows) == 1), plain(ready.whole):
                hidden = proceed(next_tokens)  # (B, D)
    return out


def plain(prepared: bool) -> AbstractContextManager[None]:
    """Around the step of a prepared model, which leaves nothing to autograd.

    Without its bookkeeping an operation is a little cheaper: 4 % of a token. Only here, since what
    the step makes cannot be kept for a backward pass, as what a caller's `emit` makes may be.
    """
    return torch.inference_mode() if prepared else nullcontext()


def alike(model: Transformer, prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The first row of each kind, and of every row which kind it is.

    Rows are of one kind where their prompts are equal, and their adapters where rows have their
    own: what hangs on the model then has a `mixture`, a name for each row.
    """
    mixture = getattr(getattr(model, "adapters", None), "mixture", None)
    if mixture is not None and len(mixture) != len(prompts):
        return list(range(len(prompts))), list(range(len(prompts)))
    names = mixture or (None,) * len(prompts)
    kinds: dict[object, int] = {}
    first: list[int] = []
    of: list[int] = []
    for row, (ids, name) in enumerate(zip(prompts, names, strict=True)):
        kind = kinds.setdefault((tuple(ids), name), len(first))
        if kind == len(first):
            first.append(row)
        of.append(kind)
    return first, of


def check(
    model: Transformer, prompts: Sequence[Sequence[int]], longest: int, max_new_tokens: int
) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens: found {max_new_tokens}, allowed 1 or more")
    for i, ids in enumerate(prompts):
        if not ids:
            raise ConfigError(f"prompt {i + 1} is empty: it needs at least one token")
        if not 0 <= min(ids) <= max(ids) < model.config.vocab:
            raise ConfigError(f"prompt {i + 1} has ids outside of 0 to {model.config.vocab - 1}")
    if longest + max_new_tokens > model.config.context:
        raise ConfigError(
            f"{longest} prompt tokens and {max_new_tokens} new ones exceed the model's context of "
            f"{model.config.context}"
        )


@dataclass(frozen=True)
class Stops:
    """Where text ends: at these strings, which are not part of it."""

    strings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for text in self.strings:
            if type(text) is not str or not text:
                found = "an empty text" if text == "" else one_line(text)
                raise ConfigError(f"stop: found {found}, allowed texts of one character or more")

    def cut(self, text: str) -> str | None:
        """The text before the first stop string, or None where there is none."""
        found = [text.find(s) for s in self.strings if s in text]
        return text[: min(found)] if found else None


Prompt = str | Sequence[int]  # text, or ids as `tokenizer.chat` gives them


@overload
def generate(model: Transformer, tokenizer: Tokenizer, prompts: Prompt, **options: Any) -> Any: ...
@overload
def generate(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt], **options: Any
) -> list[str]: ...
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 100,
    samples: int = 1,
    stop: str | Sequence[str] = (),
    threads: int | None = None,
    stream: Callable[[int, str], object] | None = None,
    graph: bool = False,
    sampling: Sampling | None = None,
    **options: float,
) -> str | list[str]:
    """The text that follows each prompt; of a single one, which need not be in a list, its text.

    A prompt is a text, or ids as `tokenizer.chat` gives them. `max_new_tokens` are tokens a text,
    `threads` of the CPU, by default one a core. At temperature 0, the default, the likeliest token
    is taken every time, and the same prompts give the same texts on the same machine.

    Raises ConfigError for an empty prompt, for one that leaves no room for the new tokens in the
    model's context, and for options that are none.

    With `samples` that many of each, beside each other in a list; the prompt is read once for all.
    Options are the fields of Sampling, `temperature=0.7` and so on. `stream(row, text)` is called
    with whole characters as they come. Ends at the tokenizer's end token, at the token that ends an
    answer in its chat template, and at any `stop` string. `graph`: on a GPU, a token's pass as one
    CUDA graph.
    """
    known = [item.name for item in fields(Sampling)]
    for name in options:
        if name not in known:
            raise ConfigError(f'generate: found the option "{name}", allowed {", ".join(known)}')
    config = replace(sampling or Sampling(), **options)  # type: ignore[arg-type]
    stops = Stops((stop,) if isinstance(stop, str) else tuple(stop))
    if samples < 1 or (samples > 1 and config.temperature == 0):
        raise ConfigError(
            f"samples: found {samples} at temperature {config.temperature:g}, allowed 1, or more "
            "at a temperature above 0"
        )
    alone = isinstance(prompts, str) or (len(prompts) > 0 and type(prompts[0]) is int)
    each: Sequence[Any] = [prompts] if alone else prompts
    read = [encode_with_bos(tokenizer, p) if isinstance(p, str) else list(p) for p in each]
    ids = [one for one in read for _ in range(samples)]
    streams = [TextStream(tokenizer) for _ in ids]
    texts, told, ended = [""] * len(ids), [0] * len(ids), [False] * len(ids)
    held = max((len(s) for s in stops.strings), default=1) - 1  # what may yet become a stop string

    def tell(row: int, upto: int) -> None:
        if stream is not None and upto > told[row]:
            stream(row, texts[row][told[row] : upto])
            told[row] = upto

    def emit(row: int, token: int) -> None:
        texts[row] += streams[row].push(token)

    def finished(row: int, _: list[int]) -> bool:
        cut = stops.cut(texts[row])
        if cut is not None:
            texts[row], ended[row] = cut, True
        tell(row, len(texts[row]) - (held if cut is None else 0))
        return cut is not None

    with tuned(threads, model.embed.weight.device):
        decode(
            model,
            ids,
            max_new_tokens=max_new_tokens,
            stop=chat.ends(tokenizer),
            sampling=config,
            finished=finished,
            emit=emit,
            graph=graph,
        )
    for row, rest in enumerate(streams):
        if not ended[row]:
            texts[row] += rest.close()
        tell(row, len(texts[row]))
    return texts[0] if alone and samples == 1 else texts
