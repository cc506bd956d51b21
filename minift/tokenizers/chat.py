"""Conversations to ids with a mask: what the model's chat template writes, told apart.

    <|im_start|>user⏎Hello<|im_end|>⏎<|im_start|>assistant⏎Hi there<|im_end|>⏎
                                                          ▐──── learned ───▌

The template is rendered (jinja/), and each character keeps its source (jinja/traced.py). So
a special token's name becomes the token where the template wrote it, and in a message it is plain
text, whatever a user wrote; BOS occurs where the template has it and nowhere else. Learned is each
answer: from where the template's prompt for an answer ends, through the special token that ends it.

Text between two special tokens is encoded in one go ("user⏎" and the message), as transformers does
it. Before an answer there is always a border, since that is where generation begins; the ids differ
from transformers' only if white space meets there that the vocabulary would have joined.

The model's own template is what is rendered. Gemma 1 and 2 and the first Mistrals refuse a system
message, and Mistral's v3 drops it from a conversation that ends with an answer; for these the named
template is used (chat_templates.py) that otherwise writes the same. A template that asks for the
date gets today's, one for the whole process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from itertools import pairwise

from minift.errors import ConfigError, EncodeError, notice, one_line
from minift.tokenizers.chat_templates import TEMPLATES
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.jinja import traced
from minift.tokenizers.jinja.render import render as render_template
from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.traced import TEMPLATE, Text, runs_of
from minift.tokenizers.tokens import Finder

ROLES = ("system", "user", "assistant")
Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]
Values = tuple[tuple[str, str | None], ...]  # variables of a template: its special tokens

# Further tokens with which models end what they say, beside the one that their template writes.
ALSO_END = {
    "<|eot_id|>": ("<|end_of_text|>", "<|eom_id|>"),
    "<|im_end|>": ("<|endoftext|>",),
}


def _conversation(*contents: str, system: str | None = None) -> Messages:
    first = [] if system is None else [{"role": "system", "content": system}]
    pairs = zip(contents, ("user", "assistant") * 2, strict=False)
    return [*first, *({"role": role, "content": text} for text, role in pairs)]


# What tells templates apart: blanks, thoughts, a system message or none, what comes last.
PROBES = (
    _conversation(" Hi \n"),
    _conversation("Hi", " Yes. \n", "\n Why?", "<think>\nHm.\n</think>\n\nNo. "),
    _conversation("Hi", "<think>\nHm.\n</think>\n\nNo."),
    _conversation("Hi", "<think>Hm.</think>Yes.", "Why?"),
    _conversation("Hi", system=" Be brief. "),
    _conversation("Hi", "Yes.", "Why?", system="Be brief."),
    _conversation("Hi", "Yes.", system="Be brief."),
)
PROBE_DATE = datetime(2001, 2, 3)


@cache
def today() -> datetime:
    """The date that templates write, the same from the first to the last row of a training."""
    return datetime.now()


def source_of(tokenizer: Tokenizer) -> str:
    """The Jinja text that the user chose by name, or else the one that came with the model."""
    choice, names = tokenizer.chat_template, ", ".join(TEMPLATES)
    if choice is not None:
        if choice not in TEMPLATES:
            raise ConfigError(f'--chat-template: found "{one_line(choice)}", allowed {names}')
        for token in TEMPLATES[choice].tokens:
            missing = (
                tokenizer.bos is None if token == "bos_token" else (token not in tokenizer.special)
            )
            if missing:
                raise ConfigError(
                    f"the chat template needs the special token {token}: it is missing"
                )
        return TEMPLATES[choice].jinja
    if tokenizer.template is None:
        raise ConfigError(
            f"this model came without a chat template: choose one with --chat-template ({names})"
        )
    return tokenizer.template


def name_of(tokenizer: Tokenizer) -> str | None:
    """The name of the template: the chosen one's, or that of the one that writes the same."""
    if tokenizer.chat_template is not None or tokenizer.template is None:
        return tokenizer.chat_template
    return _name_of(tokenizer.template, _values(tokenizer))


def refusal(tokenizer: Tokenizer) -> str | None:
    """Why the model's template cannot be used at all, in a few words; None if it can."""
    assert tokenizer.template is not None
    try:
        text = _write(tokenizer.template, _values(tokenizer), PROBES[0], True, PROBE_DATE)
    except JinjaError as error:
        return one_line(str(error))
    return None if 1 in _places(text) else "it leaves out a user's message"


@lru_cache(maxsize=64)
def _name_of(source: str, values: Values) -> str | None:
    written = [_probe(source, values, number) for number in range(len(PROBES))]
    for name, template in TEMPLATES.items():
        for number, text in enumerate(written):
            leaves_out = text is None or 1 not in _places(text)
            if PROBES[number][0]["role"] == "system" and leaves_out:
                continue  # then the named template is used for it
            if text is None or text != _probe(template.jinja, values, number):
                break
        else:
            return name
    return None


@lru_cache(maxsize=512)
def _probe(source: str, values: Values, number: int) -> Text | None:
    """What a template writes of a probe; None where it refuses it."""
    messages = PROBES[number]
    reply = messages[-1]["role"] == "user"
    try:
        return _write(source, values, messages, reply, PROBE_DATE)
    except JinjaError:
        return None


def _write(source: str, values: Values, messages: Messages, reply: bool, now: datetime) -> Text:
    """What transformers has a template write without tools; JinjaError where it refuses that."""
    return render_template(
        source, messages, now,
        add_generation_prompt=reply, tools=None, documents=None, **dict(values),
    )  # fmt: skip


def _token(tokenizer: Tokenizer, i: int) -> str:
    return tokenizer.token_bytes(i).decode(errors="replace")


def _values(tokenizer: Tokenizer) -> Values:
    """The special tokens by the names that templates have for them."""
    roles = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    found = {name: _token(tokenizer, i) for name, i in roles.items() if i is not None}
    # In a template without a vocabulary of its own: BOS, if the vocabulary's texts begin with it.
    found["opening"] = found.get("bos_token", "") if tokenizer.add_bos else ""
    return tuple(found.items())


def jinja(tokenizer: Tokenizer) -> str | None:
    """The Jinja text to save with a model: that of the chosen name, or what came with the model."""
    if tokenizer.chat_template is None:
        return tokenizer.template
    opening = "{{ bos_token }}" if tokenizer.add_bos else ""
    return source_of(tokenizer).replace("{{ opening }}", opening)


def ends(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end what a model says: EOS, those of its files, and its template's."""
    found = {tokenizer.eos, *tokenizer.also_ends}
    try:
        closing = _closing(tokenizer, source_of(tokenizer))
    except ConfigError:  # without a template, which perhaps nobody asked for
        return frozenset(found)
    for _, stop, i in _tokens(tokenizer, closing):
        assert stop == len(closing)
        names = ALSO_END.get(_token(tokenizer, i), ())
        found |= {i, *(tokenizer.special[name] for name in names if name in tokenizer.special)}
    return frozenset(found)


def closing_token(tokenizer: Tokenizer) -> int | None:
    """The special token that the template writes behind an answer, where there is one."""
    try:
        closing = _closing(tokenizer, source_of(tokenizer))
    except ConfigError:
        return None
    return next((i for _, _, i in _tokens(tokenizer, closing)), None)


def render(
    tokenizer: Tokenizer, messages: Messages, *, reply: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and a mask of the same length; 1 = a token to be learned.

    `messages` are {"role": ..., "content": ...}. `reply` ends with the prompt for an answer.
    """
    source = source_of(tokenizer)
    check(messages, reply=reply)
    text = _conversation_text(tokenizer, source, messages, reply)
    return _encode(tokenizer, text, _answers(tokenizer, source, messages, text))


def _conversation_text(tokenizer: Tokenizer, source: str, messages: Messages, reply: bool) -> Text:
    """What the template writes, or the named one for a system message that it leaves out."""
    given = messages[0]["role"] == "system" and messages[0]["content"] != ""
    sources, text, reason = [source], None, ""
    if given and tokenizer.chat_template is None and (name := name_of(tokenizer)) is not None:
        sources.append(TEMPLATES[name].jinja)
    for candidate in sources:
        try:
            text = _write(candidate, _values(tokenizer), messages, reply, today())
        except JinjaError as error:
            reason = reason or str(error)
            continue
        if not given or 1 in _places(text):
            break
    places = {} if text is None else _places(text)
    if given and 1 not in places:
        if len(messages) == 1:
            raise ConfigError("messages: found system alone, allowed a user's message after it")
        if text is not None:
            notice("chat template", "it leaves out the system message of a conversation")
    for n, message in enumerate(messages, 1):
        if text is not None and message["role"] == "user" and n not in places:
            text, reason = None, f"it leaves out message {n}"
    if text is None:
        raise _unwritten(source, reason)
    return text


def _unwritten(source: str, reason: str) -> ConfigError:
    return ConfigError(
        f'the chat template, "{one_line(source, 60)}", does not write this conversation: '
        f"{one_line(reason, 160)}; choose one with --chat-template ({', '.join(TEMPLATES)})"
    )


def _places(text: Text) -> dict[int, Span]:
    """Where the characters of each message begin and end."""
    found: dict[int, Span] = {}
    at = 0
    for count, source in runs_of(text):
        if source != TEMPLATE:
            found[source] = (found.get(source, (at,))[0], at + count)
        at += count
    return found


def _answers(tokenizer: Tokenizer, source: str, messages: Messages, text: Text) -> list[Span]:
    """The characters that are to be learned: each answer, from its prompt's end through its own.

    The prompt is what the template writes behind a question when an answer is to come. Where it is
    not what stands before an answer (some begin a thought in it), the answer alone is learned.
    """
    numbers = [n for n, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if not numbers:
        return []
    last, closing = numbers[-1], _closing(tokenizer, source)
    asked = _conversation_text(tokenizer, source, messages[: last - 1], reply=True)
    prompt = asked[_places(asked)[last - 1][1] :]
    places, found = _places(text), []
    for n in numbers:
        if n not in places:  # nothing but a thought, of which the template keeps none
            continue
        begin, end = places[n]
        if any(begin < there[1] and there[0] < end for k, there in places.items() if k != n):
            raise _unwritten(source, f"it writes message {n} in parts, with others between them")
        prompted = places[n - 1][1] + len(prompt)
        if prompted <= begin and text.startswith(prompt, prompted - len(prompt)):
            begin = prompted
        if closing and text.startswith(closing, end):
            end += len(closing)
        elif n == last:
            notice(
                "chat template", "it writes no token after the last answer: a model learns no end"
            )
        found.append((begin, end))
    return sorted(found)


def _closing(tokenizer: Tokenizer, source: str) -> Text:
    """What the template writes behind an answer, up to and with the first special token, if any."""
    text = _probe(source, _values(tokenizer), 1) or traced.traced("", TEMPLATE)
    places = _places(text)
    end, following = places.get(2, (0, 0))[1], places.get(3, (0, 0))[0]
    stops = [stop for start, stop, _ in _tokens(tokenizer, text) if end <= start < following]
    return traced.cut(text, end, stops[0] if stops else end)


def _tokens(tokenizer: Tokenizer, text: Text) -> list[tuple[int, int, int]]:
    """Start, stop and id of the special tokens that the template wrote."""
    written, at = [], 0  # (start, text) of what the template wrote
    for count, source in runs_of(text):
        if source == TEMPLATE:
            written.append((at, str(text)[at : at + count]))
        at += count
    whole = "\0".join(part for _, part in written)
    names = {name: i for name, i in tokenizer.special.items() if name in whole}
    for i in (tokenizer.bos, tokenizer.eos):
        if i is not None and (name := _token(tokenizer, i)):
            names[name] = i
    finder, found = Finder(names), []
    for at, part in written:
        for k, piece in enumerate(finder.cut(part)):
            if k % 2:
                found.append((at, at + len(piece), names[piece]))
            at += len(piece)
    return found


def _encode(tokenizer: Tokenizer, text: Text, learned: list[Span]) -> tuple[list[int], list[int]]:
    """Special tokens as their ids, the text between them as the vocabulary has it, and the mask."""
    tokens = {start: (stop, i) for start, stop, i in _tokens(tokenizer, text)}
    borders = {0, len(text), *tokens, *(stop for stop, _ in tokens.values())}
    borders |= {place for span in learned for place in span}
    ids: list[int] = []
    mask: list[int] = []
    spans = iter([*learned, (len(text), len(text))])
    begin, end = next(spans)
    for start, stop in pairwise(sorted(borders)):
        while start >= end and end < len(text):
            begin, end = next(spans)
        if start in tokens:
            new = [tokens[start][1]]
        else:
            try:
                new = tokenizer.encode(text[start:stop], after=ids[-1] if ids else None)
            except EncodeError as error:
                raise _located(tokenizer, text, start, stop, error) from None
        ids += new
        mask += [int(begin <= start < end)] * len(new)
    return ids, mask


def _located(
    tokenizer: Tokenizer, text: Text, start: int, stop: int, error: EncodeError
) -> EncodeError:
    """The error with the number of the message whose text cannot be encoded."""
    for n, (begin, end) in _places(text).items():
        begin, end = max(begin, start), min(end, stop)
        try:
            tokenizer.encode(text[begin : max(begin, end)])
        except EncodeError:
            return EncodeError(f'message {n}, field "content": {error}')
    return EncodeError(f"chat template: {error}")


def check(messages: Messages, *, reply: bool = False) -> None:
    """Raise ConfigError unless: system or none, then user and assistant in turn, all with text."""

    def refuse(n: int, name: str, found: object, allowed: str) -> None:
        raise ConfigError(
            f'message {n}, field "{name}": found {one_line(found)}, allowed {allowed}'
        )

    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError(f"messages: found {one_line(messages)}, allowed a list of at least one")
    before = ""
    for n, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ConfigError(f"message {n}: found {one_line(message)}, allowed role and content")
        for name in message:
            if name not in ("role", "content"):
                refuse(n, str(name), "an unknown field", "role, content")
        role, text = message.get("role"), message.get("content")
        turn = {"": ("system", "user"), "system": ("user",), "user": ("assistant",)}
        allowed = turn.get(before, ("user",))
        if role not in ROLES:
            refuse(n, "role", role, ", ".join(ROLES))
        if role not in allowed:
            refuse(n, "role", role, " or ".join(allowed) + (f" after {before}" if before else ""))
        if not isinstance(text, str):
            refuse(n, "content", text, "text")
        elif role != "system" and not text.strip():
            refuse(n, "content", text, "text that is not empty")
        before = str(role)
    if reply and before != "user":
        refuse(len(messages), "role", before, "user, for an answer to come")
