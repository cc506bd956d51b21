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

Which turns may follow each other is the template's to say: most write any order, those of Llama 2,
Mistral and Gemma raise an exception. An answer of "weight" 0 is written and not learned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from minift.errors import ConfigError, EncodeError, notice, one_line
from minift.tokenizers.chat_templates import TEMPLATES
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.jinja import traced
from minift.tokenizers.jinja.render import render as render_template
from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.traced import TEMPLATE, Text, runs_of
from minift.tokenizers.tokens import Finder

ROLES = ("system", "user", "assistant")
Messages = Sequence[Mapping[str, Any]]
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


class Unwritten(ConfigError):
    """A template cannot write a conversation: `number` is the first message that it stops at."""

    def __init__(self, text: str, number: int, reason: str):
        super().__init__(text)
        self.number, self.reason = number, reason


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
    ids, mask, _ = render_with_sources(tokenizer, messages, reply=reply)
    return ids, mask


def render_with_sources(
    tokenizer: Tokenizer, messages: Messages, *, reply: bool = False, apart: Collection[int] = ()
) -> tuple[list[int], list[int], list[int]]:
    """Ids, mask, and the message that each id is of; 0 = the template's.

    The texts of the messages `apart` are encoded by themselves, so that their ids can be cut. Of
    other messages there are those that are learned.
    """
    source = source_of(tokenizer)
    check(messages, reply=reply)
    text = _conversation_text(tokenizer, source, messages, reply)
    answers = _answers(tokenizer, source, messages, text)
    texts = {n: place for n, place in _places(text).items() if n in apart}
    ids, starts = _encode(tokenizer, text, [*answers.values(), *texts.values()])
    learned = {n: span for n, span in answers.items() if is_learned(messages[n - 1])}
    mask = [int(n > 0) for n in _spans_of(starts, learned)]
    return ids, mask, _spans_of(starts, learned | texts)


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether a message is an answer that counts."""
    return message["role"] == "assistant" and message.get("weight") != 0


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
    if text is None:
        raise _unwritten(source, _stops_at(tokenizer, sources, messages), messages, reason)
    for n, message in enumerate(messages, 1):
        late = message["role"] == "system" and n > 1 and message["content"].strip()
        if (message["role"] == "user" or late) and n not in places:
            raise _unwritten(source, n, messages, f"it leaves out message {n}")
    return text


def _stops_at(tokenizer: Tokenizer, sources: Sequence[str], messages: Messages) -> int:
    """The number of the message that follows the longest part that a template does write."""
    for n in range(len(messages) - 1, 0, -1):
        for source in sources:
            try:
                _write(source, _values(tokenizer), messages[:n], False, today())
            except JinjaError:
                continue
            return n + 1
    return 1


def turn_of(messages: Messages, n: int) -> str:
    """Whose turn message n is and whom it follows, for an error."""
    role: str = messages[n - 1]["role"]
    return f"{role} first" if n == 1 else f"{role} after {messages[n - 2]['role']}"


def _unwritten(source: str, n: int, messages: Messages, reason: str) -> Unwritten:
    text = (
        f"message {n}: found {turn_of(messages, n)}; the chat template, "
        f'"{one_line(source, 60)}", does not write this conversation: {one_line(reason, 160)}; '
        f"choose one with --chat-template ({', '.join(TEMPLATES)})"
    )
    return Unwritten(text, n, reason)


def _places(text: Text) -> dict[int, Span]:
    """Where the characters of each message begin and end."""
    found: dict[int, Span] = {}
    at = 0
    for count, source in runs_of(text):
        if source != TEMPLATE:
            found[source] = (found.get(source, (at,))[0], at + count)
        at += count
    return found


def _answers(tokenizer: Tokenizer, source: str, messages: Messages, text: Text) -> dict[int, Span]:
    """The characters of each answer, from its prompt's end through its own.

    The prompt is what the template writes behind a question when an answer is to come. Where it is
    not what stands before an answer (some begin a thought in it), the answer alone is learned.
    """
    numbers = [n for n, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if not numbers:
        return {}
    closing, prompt, header = _closing(tokenizer, source), "", ""
    replies = [n for n in numbers if n > 1 and messages[n - 2]["role"] == "user"]
    if replies:
        asked = _conversation_text(tokenizer, source, messages[: replies[-1] - 1], reply=True)
        prompt = asked[_places(asked)[replies[-1] - 1][1] :]
    if len(replies) < len(numbers):
        header = _header(tokenizer, source)
    places = _places(text)
    found: dict[int, Span] = {}
    for n in numbers:
        if n not in places:  # nothing but a thought, of which the template keeps none
            continue
        begin, end = places[n]
        if any(begin < there[1] and there[0] < end for k, there in places.items() if k != n):
            reason = f"it writes message {n} in parts, with others between them"
            raise _unwritten(source, n, messages, reason)
        if n in replies:
            prompted = places[n - 1][1] + len(prompt)
            if prompted <= begin and text.startswith(prompt, prompted - len(prompt)):
                begin = prompted
        else:  # behind what is no question, its header alone stands
            before = [stop for _, stop in (*places.values(), *found.values()) if stop <= begin]
            start = max(before, default=0)
            if header:
                at = text.rfind(header, start, begin)
                begin = begin if at < 0 else at + len(header)
            else:
                stops = [stop for _, stop, _ in _tokens(tokenizer, text) if stop <= begin]
                begin = max([start, *stops])
        if closing and text.startswith(closing, end):
            end += len(closing)
        elif n == numbers[-1]:
            notice(
                "chat template", "it writes no token after the last answer: a model learns no end"
            )
        found[n] = (begin, end)
    return found


def _header(tokenizer: Tokenizer, source: str) -> str:
    """What a template adds to a conversation for an answer to come; "" where it adds nothing."""
    values = _values(tokenizer)
    try:
        written, asked = (_write(source, values, PROBES[0], r, PROBE_DATE) for r in (False, True))
    except JinjaError:
        return ""
    return str(asked)[len(written) :] if asked.startswith(written) else ""


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


def _encode(tokenizer: Tokenizer, text: Text, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Special tokens as their ids, the text between them as the vocabulary has it.

    With each id, where the text begins that it is of; no such text crosses an end of `spans`.
    """
    tokens = {start: (stop, i) for start, stop, i in _tokens(tokenizer, text)}
    borders = {0, len(text), *tokens, *(stop for stop, _ in tokens.values())}
    borders |= {place for span in spans for place in span}
    ids: list[int] = []
    starts: list[int] = []
    for start, stop in pairwise(sorted(borders)):
        if start in tokens:
            new = [tokens[start][1]]
        else:
            try:
                new = tokenizer.encode(text[start:stop], after=ids[-1] if ids else None)
            except EncodeError as error:
                raise _located(tokenizer, text, start, stop, error) from None
        ids += new
        starts += [start] * len(new)
    return ids, starts


def _spans_of(starts: Sequence[int], spans: Mapping[int, Span]) -> list[int]:
    """Which of the spans each place lies in; 0 = in none."""
    rows = sorted((span, n) for n, span in spans.items())
    found, k = [], 0
    for start in starts:
        while k < len(rows) and rows[k][0][1] <= start:
            k += 1
        found.append(rows[k][1] if k < len(rows) and rows[k][0][0] <= start else 0)
    return found


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
    """Raise ConfigError unless these are messages with text; their order the template decides."""

    def refuse(n: int, name: str, found: object, allowed: str) -> None:
        raise ConfigError(
            f'message {n}, field "{name}": found {one_line(found)}, allowed {allowed}'
        )

    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError(f"messages: found {one_line(messages)}, allowed a list of at least one")
    for n, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ConfigError(f"message {n}: found {one_line(message)}, allowed role and content")
        for name in message:
            if name not in ("role", "content", "weight"):
                refuse(n, str(name), "an unknown field", "role, content, weight")
        role, text = message.get("role"), message.get("content")
        if role not in ROLES:
            refuse(n, "role", role, ", ".join(ROLES))
        if not isinstance(text, str):
            refuse(n, "content", text, "text")
        elif role != "system" and not text.strip():
            refuse(n, "content", text, "text that is not empty")
        if "weight" in message:
            weight = message["weight"]
            if role != "assistant":
                refuse(n, "weight", weight, f"no such field, as {role} turns are not learned")
            if type(weight) not in (int, float) or weight not in (0, 1):
                refuse(n, "weight", weight, "0 (not learned) or 1")
    if reply and messages[-1]["role"] == "assistant":
        refuse(len(messages), "role", "assistant", "user, for an answer to come")
