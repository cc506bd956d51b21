"""Batched decoding: prompts are padded on the left, read once, and continued token by token.

Equal prompts share one row until the first token is sampled; then each gets its own. Finished rows
leave the batch. A row ends at a stop token, at a stop string (which is cut off), or after
`max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, overload

import torch

from minift.errors import ConfigError, one_line
from minift.generation import static_cache
from minift.generation.cache import KVCache
from minift.generation.decode_weights import decode_weights
from minift.generation.sampling import Sampling, adjust, draw
from minift.model.transformer import Transformer
from minift.runtime import tuned, unrouted

if TYPE_CHECKING:
    from minift.tokenizers.interface import Tokenizer

Emit = Callable[[int, int], object]  # (row, token), called as soon as a token is sampled


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
    """The new ids of every prompt, without the stop token. Prompts of any length, none empty.

    `finished(row, ids)` may end a row after any token; `emit` is called with each token kept.
    `graph`: a token's forward pass is one CUDA graph (static_cache.py); ConfigError if it
    cannot be.
    """
    if graph:
        static_cache.check(model)
    config = sampling or Sampling()
    longest = max(map(len, prompts), default=0)
    check(model, prompts, longest, max_new_tokens)
    if not prompts:
        return []
    device = model.embed.weight.device
    dtype = model.embed.weight.dtype
    first, of = distinct_rows(model, prompts)
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
        weights = after.enter_context(decode_weights(model, max_new_tokens))
        hidden = model(tokens, mask=mask, cache=cache, hidden_only=True)[:, -1]  # (B, D)
        if len(first) < len(prompts):
            every = torch.tensor(of, device=device)
            hidden = hidden[every]
            cache.select(every)
        cache.rows = torch.arange(len(prompts))
        step_pass = static_cache.StaticPass if graph else static_cache.DynamicPass
        next_hidden = step_pass(model, cache)
        for step in range(max_new_tokens):
            logits = weights.logits(hidden)  # (B, V)
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
                next_hidden.select(kept)
                next_tokens = next_tokens[kept]
                seen = seen[kept] if penalized else seen
                rows = [rows[i] for i in going]
            with unrouted(weights.complete or len(rows) == 1), no_autograd(weights.complete):
                hidden = next_hidden(next_tokens)  # (B, D)
    return out


def no_autograd(complete: bool) -> AbstractContextManager[None]:
    """Around a step that runs on decode weights completely, so nothing of it needs autograd.

    Without autograd's bookkeeping an operation is a little cheaper: 4 % of a token. Only around the
    step: tensors made in inference mode cannot be used in a backward pass, and those that a
    caller's `emit` makes may have to be.
    """
    return torch.inference_mode() if complete else nullcontext()


def distinct_rows(
    model: Transformer, prompts: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """The first row of each distinct kind, and the kind of every row.

    Two rows are of one kind if their prompts are equal, and if what is attached to the model
    treats them alike.
    """
    keys = [extension.row_keys for extension in model.extensions]
    given = [each for each in keys if each is not None]
    if any(len(each) != len(prompts) for each in given):
        return list(range(len(prompts))), list(range(len(prompts)))
    kinds: dict[object, int] = {}
    first: list[int] = []
    of: list[int] = []
    for row, ids in enumerate(prompts):
        kind = kinds.setdefault((tuple(ids), *(each[row] for each in given)), len(first))
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
    """The strings at which a text ends, which are not part of it."""

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


Prompt = str | Sequence[int]  # text, or ids as `tokenizer.chat` returns them


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
    """The text that follows each prompt: a list, or for a single prompt outside a list its text.

    A prompt is a text, or ids as `tokenizer.chat` gives them. `max_new_tokens` are tokens a text,
    `threads` of the CPU, by default one a core. At temperature 0, the default, the likeliest token
    is taken every time, and the same prompts give the same texts on the same machine.

    Raises ConfigError for an empty prompt, for one that leaves no room for the new tokens in the
    model's context, and for options that are none.

    With `samples`, that many texts per prompt, adjacent in the list; the prompt is read once.
    Options are the fields of Sampling, `temperature=0.7` and so on. `stream(row, text)` is called
    with whole characters as they come. A text ends at the tokenizer's end token, at the token that
    ends an answer in its chat template, and at any `stop` string. `graph`: on a GPU, run a token's
    forward pass as one CUDA graph.
    """
    from minift.tokenizers import chat
    from minift.tokenizers.bos import encode_with_bos
    from minift.tokenizers.stream import TextStream

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
    single = isinstance(prompts, str) or (len(prompts) > 0 and type(prompts[0]) is int)
    each: Sequence[Any] = [prompts] if single else prompts
    read = [encode_with_bos(tokenizer, p) if isinstance(p, str) else list(p) for p in each]
    ids = [one for one in read for _ in range(samples)]
    streams = [TextStream(tokenizer) for _ in ids]
    texts, streamed, ended = [""] * len(ids), [0] * len(ids), [False] * len(ids)
    held = max((len(s) for s in stops.strings), default=1) - 1  # may yet become a stop string

    def emit_text(row: int, upto: int) -> None:
        if stream is not None and upto > streamed[row]:
            stream(row, texts[row][streamed[row] : upto])
            streamed[row] = upto

    def emit(row: int, token: int) -> None:
        texts[row] += streams[row].push(token)

    def finished(row: int, _: list[int]) -> bool:
        cut = stops.cut(texts[row])
        if cut is not None:
            texts[row], ended[row] = cut, True
        emit_text(row, len(texts[row]) - (held if cut is None else 0))
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
        emit_text(row, len(texts[row]))
    return texts[0] if single and samples == 1 else texts
