"""A conversation that is too long: what is cut is text, never what a model expects around it.

    BOS [system] [user assistant] [user assistant] [user assistant]
                 ▐ 1: whole turns, the oldest first ▌ ▐ 2: the beginning of what was asked

The beginning, the system turn and the headers of the turns that are kept stand. The last answer
that is learned stays whole if it can: before it, the system's text loses its end. What follows it
teaches nothing and goes first.
"""

from __future__ import annotations

from minift.errors import ConfigError
from minift.tokenizers.chat import Messages, is_learned, render, render_with_sources
from minift.tokenizers.interface import Tokenizer


def render_within(
    tokenizer: Tokenizer, messages: Messages, most: int
) -> tuple[list[int], list[int], bool]:
    """Ids and mask of a conversation in at most `most` tokens, and whether it was cut."""
    ids, mask = render(tokenizer, messages)
    if len(ids) <= most:
        return ids, mask, False
    answers = [n for n, message in enumerate(messages, 1) if is_learned(message)]
    last = answers[-1] if answers else len(messages) + 1
    system = 1 if messages[0]["role"] == "system" else 0
    # Where a conversation may begin: at a question, of several in a row at the first.
    starts = [
        k
        for k in range(system + 1, last - 1)
        if messages[k]["role"] == "user" and messages[k - 1]["role"] != "user"
    ]
    low, high = 0, len(starts)  # the first of them from which on all fits
    while low < high:
        middle = (low + high) // 2
        ids, mask = render(tokenizer, kept := [*messages[:system], *messages[starts[middle] :]])
        if len(ids) <= most:
            low, high = low, middle
        else:
            low = middle + 1
    if low < len(starts):
        kept = [*messages[:system], *messages[starts[low] :]]
        return *render(tokenizer, kept), True
    gone = starts[-1] - system if starts else 0
    kept = [*messages[:system], *messages[system + gone :]]
    return *_texts_cut(tokenizer, kept, last - gone, most), True


def _texts_cut(
    tokenizer: Tokenizer, messages: Messages, last: int, most: int
) -> tuple[list[int], list[int]]:
    """The conversation with less of its texts; message `last` is the answer to keep."""
    others = [n for n in range(1, len(messages) + 1) if n != last]
    ids, mask, sources = render_with_sources(tokenizer, messages, apart=others)
    stop = max((k + 1 for k, n in enumerate(sources) if n == last), default=len(ids))
    places: dict[int, list[int]] = {n: [] for n in range(len(messages) + 2)}
    for k, n in enumerate(sources[:stop]):
        places[n].append(k)
    has_system = messages[0]["role"] == "system"
    questions = [k for n in others if n > has_system for k in places[n]]
    system = places[1][::-1] if has_system else []
    going = [*questions, *system, *places[last][:0:-1]]  # in this order; of the answer one stays
    excess = max(0, stop - most)
    if excess > len(going):
        raise ConfigError(
            f"max_length: found {most}, allowed {stop - len(going)} or more: the chat template "
            f"itself writes {len(places[0])} tokens"
        )
    gone = set(going[:excess])
    stays = [k for k in range(stop) if k not in gone]
    return [ids[k] for k in stays], [mask[k] for k in stays]
