"""Conversations to ids with a mask, by rows of data: no Jinja is run, and no text is searched.

    <|im_start|>user⏎Hello<|im_end|>⏎<|im_start|>assistant⏎Hi there<|im_end|>⏎
                                                          ▐──── learned ───▌

A template is a row of parts: special tokens, which become their id, and text, which is encoded and
can never become a special token, whatever a user wrote. So the mask is known part by part, and BOS
occurs where a row has it and nowhere else: no code adds a second one.

Neighbouring texts with the same mask bit are encoded in one go ("user⏎" and the message), as the
Jinja template would have it. Before an answer there is always a border, since that is where
generation begins; the ids differ from the Jinja template's only if an answer starts with white
space that the vocabulary would have joined to the header's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from minift.errors import ConfigError, EncodeError, one_line

ROLES = ("system", "user", "assistant")


class Tokenizer(Protocol):
    """What this file needs of a tokenizer."""

    special: dict[str, int]
    template: str | None  # the Jinja text that came with the model
    chat_template: str | None  # the name of a row, when the user chose one

    def encode(self, text: str) -> list[int]: ...


class Special(str):
    """The name of a special token, as a part of a template."""

    __slots__ = ()


@dataclass(frozen=True)
class Template:
    """How one family of chat models writes a conversation. `{role}` stands for the role.

    begin, then per message: header, content, end, after. With `reply`, a last assistant header.
    A Jinja text is recognised by what it contains: all of `marks`, and none of `without`.
    """

    marks: tuple[str, ...]
    without: tuple[str, ...]
    header: tuple[str, ...]
    end: tuple[str, ...]  # learned after an answer: how the model stops
    begin: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    system: str | None = None  # the system message of conversations that bring none
    trim: bool = False  # white space around a message is dropped
    jinja: str = ""  # saved with a model that has no template of its own


# What other templates of the same tokens do and these rows do not: tools, thinking, own prompts.
NOT_PLAIN = ("tool", "think", "You are", "date", "namespace")

_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_CHATML_JINJA = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML = Template(
    marks=("<|im_start|>", "<|im_end|>"),
    without=NOT_PLAIN,
    header=(Special("<|im_start|>"), "{role}\n"),
    end=(Special("<|im_end|>"),),
    after=("\n",),
    jinja=_CHATML_JINJA,
)

TEMPLATES = {
    "smollm2": replace(
        _CHATML,
        marks=("<|im_start|>", _SMOLLM + "<|im_end|>"),
        without=("tool", "think"),
        system=_SMOLLM,
        jinja="{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\n" + _SMOLLM + "<|im_end|>\\n' }}{% endif %}" + _CHATML_JINJA,
    ),
    "chatml": _CHATML,
    "llama3": Template(
        marks=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "| trim"),
        without=NOT_PLAIN,
        begin=(Special("<|begin_of_text|>"),),
        header=(Special("<|start_header_id|>"), "{role}", Special("<|end_header_id|>"), "\n\n"),
        end=(Special("<|eot_id|>"),),
        trim=True,
        jinja="{{ '<|begin_of_text|>' }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
}


def find(tokenizer: Tokenizer) -> Template:
    """The row that the user chose, or else the one that the model's Jinja text is."""
    choice, text = tokenizer.chat_template, tokenizer.template
    names = ", ".join(TEMPLATES)
    if choice is not None:
        if choice not in TEMPLATES:
            raise ConfigError(f'--chat-template: found "{one_line(choice)}", allowed {names}')
        return TEMPLATES[choice]
    if text is None:
        raise ConfigError(
            f"this model came without a chat template: choose one with --chat-template ({names})"
        )
    for row in TEMPLATES.values():
        if all(mark in text for mark in row.marks) and not any(no in text for no in row.without):
            return row
    raise ConfigError(
        f'the chat template of this model, "{one_line(text, 60)}", is not known: '
        f"choose one with --chat-template ({names})"
    )


def jinja(tokenizer: Tokenizer) -> str | None:
    """The Jinja text to save with a model: that of the chosen row, or what came with the model."""
    return find(tokenizer).jinja if tokenizer.chat_template is not None else tokenizer.template


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, reply: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and a mask of the same length; 1 = a token to be learned.

    `messages` are {"role": ..., "content": ...}. `reply` ends with the header of an answer to come.
    """
    template = find(tokenizer)
    check(messages, reply=reply)
    first = 1  # errors count the messages that were given
    if template.system is not None and messages[0]["role"] != "system":
        messages, first = [{"role": "system", "content": template.system}, *messages], 0

    parts: list[tuple[str, int, int]] = [(part, 0, 0) for part in template.begin]
    for n, message in enumerate(messages, first):
        role, text = message["role"], message["content"]
        learned = int(role == "assistant")
        parts += [(_fill(part, role), 0, n) for part in template.header]
        parts.append((text.strip() if template.trim else text, learned, n))
        parts += [(part, learned, n) for part in template.end]
        parts += [(part, 0, n) for part in template.after]
    if reply:
        parts += [(_fill(part, "assistant"), 0, 0) for part in template.header]
    return _encode(tokenizer, parts)


def _fill(part: str, role: str) -> str:
    return part if isinstance(part, Special) else part.replace("{role}", role)


def _encode(tokenizer: Tokenizer, parts: list[tuple[str, int, int]]) -> tuple[list[int], list[int]]:
    """Parts (what, mask bit, message number) to ids; neighbouring texts of one bit are joined."""
    ids: list[int] = []
    mask: list[int] = []
    waiting: list[str] = []  # texts to be encoded together
    for k, (part, bit, n) in enumerate(parts):
        if isinstance(part, Special):
            if part not in tokenizer.special:
                raise ConfigError(f"the chat template needs the special token {part}, not here")
            new = [tokenizer.special[part]]
        else:
            waiting.append(part)
            following = parts[k + 1] if k + 1 < len(parts) else None
            if following and not isinstance(following[0], Special) and following[1] == bit:
                continue
            try:
                new = tokenizer.encode("".join(waiting))
            except EncodeError as error:
                raise EncodeError(f'message {n}, field "content": {error}') from None
            waiting = []
        ids += new
        mask += [bit] * len(new)
    return ids, mask


def check(messages: Sequence[Mapping[str, str]], *, reply: bool = False) -> None:
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
