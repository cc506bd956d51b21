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

Some families have no turn for the system's text; it then stands in front of a user's message. The
texts of Gemma 1 and 2 and of the first Mistrals refuse it; here it is written as their successors
write it. Mistral's v3 puts it before the last user's message, as Mistral's own code does; the Jinja
text then drops it from a conversation that ends with an answer, and this does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from minift.errors import ConfigError, EncodeError, one_line
from minift.tokenizers.interface import Tokenizer

ROLES = ("system", "user", "assistant")


Part = tuple[str, int, int]  # what, mask bit, number of the message


class Special(str):
    """The name of a special token, as a part of a template."""

    __slots__ = ()


class Named(Special):
    """The name of a token in some vocabularies, which is plain text in all others."""

    __slots__ = ()


BOS, EOS = Special("bos_token"), Special("eos_token")  # whatever the vocabulary calls them
OPENING = Named("opening")  # BOS, if the vocabulary puts it before its texts
CONTENT = "content"  # the message, trimmed or not; compared by identity
TRIMMED = "content | trim"


@dataclass(frozen=True)
class Turn:
    """How a message of one role is written. `said`, with the end in it, is learned in answers."""

    header: tuple[str, ...]
    said: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fold:
    """Where the system's text goes in a family without a turn for it."""

    before: str = ""
    after: str = "\n\n"
    last: bool = False  # into the last user's message, else into the first
    whole: bool = False  # what is trimmed is all of it, else the user's message alone


@dataclass(frozen=True)
class Template:
    """How one family of chat models writes a conversation: `begin`, then the turns.

    With `reply`, the header of an answer ends it. A Jinja text is recognised by what it contains:
    all of `marks`, and none of `without`, both in the spelling of `canonical`.
    """

    marks: tuple[str, ...]
    without: tuple[str, ...]
    turns: dict[str, Turn]
    begin: tuple[str, ...] = ()
    system: str | None = None  # the system message of conversations that bring none
    fold: Fold | None = None
    jinja: str = ""  # saved with a model that has no template of its own


def alike(header: tuple[str, ...], said: tuple[str, ...], after: tuple[str, ...] = (),
          **names: str) -> dict[str, Turn]:  # fmt: skip
    """Turns that differ in nothing but the role's name, {role}."""

    def named(parts: tuple[str, ...], role: str) -> tuple[str, ...]:
        name = names.get(role, role)
        return tuple(type(part)(part.replace("{role}", name)) if "{role}" in part else part
                     for part in parts)  # fmt: skip

    return {role: Turn(named(header, role), said, after) for role in ROLES}


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
    turns=alike((Special("<|im_start|>"), "{role}\n"), (CONTENT, Special("<|im_end|>")), ("\n",)),
    jinja=_CHATML_JINJA,
)

_INST, _END_INST = Named("[INST]"), Named("[/INST]")
# A conversation that starts with a system message: its text, and the messages without it.
_SPLIT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
)
_LLAMA2 = Template(
    marks=("<<SYS>>", "bos_token+'[INST] '+content|trim+' [/INST]'",
           "' '+content|trim+' '+eos_token"),
    without=(*NOT_PLAIN, "DEFAULT"),
    turns={
        "user": Turn((BOS, _INST, " "), (TRIMMED, " ", _END_INST)),
        "assistant": Turn((), (" ", TRIMMED, " ", EOS)),
    },
    fold=Fold("<<SYS>>\n", "\n<</SYS>>\n\n", whole=True),
    jinja=_SPLIT_SYSTEM + "{% for message in loop_messages %}"
    "{% if loop.first and system_message is defined %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
)  # fmt: skip


def _mistral(user: str, answer: str, into: str = "loop.first") -> str:
    """A Jinja text of Mistral's kind: how a message and an answer are written, and which message
    takes the system's text."""
    return (
        _SPLIT_SYSTEM + "{{ bos_token }}{% for message in loop_messages %}"
        "{% set content = message['content'] %}"
        f"{{% if {into} and system_message is defined and message['role'] == 'user' %}}"
        "{% set content = system_message + '\\n\\n' + message['content'] %}{% endif %}"
        f"{{% if message['role'] == 'user' %}}{{{{ {user} }}}}"
        f"{{% else %}}{{{{ {answer} }}}}{{% endif %}}{{% endfor %}}"
    )


_MISTRAL_WITHOUT = ("<<SYS>>", "[SYSTEM_PROMPT]", "You are", "think", "message['role'] == 'system'")
# Mistral 7B Instruct v0.2 as it first was: no space before an answer.
_MISTRAL = Template(
    marks=("'[INST] '+", "+' [/INST]'", " message['content']+eos_token"),
    without=(*NOT_PLAIN, *_MISTRAL_WITHOUT, "eos_token+' '", "|trim"),
    begin=(BOS,),
    turns={
        "user": Turn((_INST, " "), (CONTENT, " ", _END_INST)),
        "assistant": Turn((), (CONTENT, EOS)),
    },
    fold=Fold(),
    jinja=_mistral("'[INST] ' + content + ' [/INST]'", "message['content'] + eos_token"),
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
        marks=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "|trim"),
        without=NOT_PLAIN,
        begin=(Special("<|begin_of_text|>"),),
        turns=alike(
            (Special("<|start_header_id|>"), "{role}", Special("<|end_header_id|>"), "\n\n"),
            (TRIMMED, Special("<|eot_id|>")),
        ),
        jinja="{{ '<|begin_of_text|>' }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    "llama2": _LLAMA2,
    # Mistral's forms differ in their spaces; the numbers are those of Mistral's tokenizers.
    "mistral-v0.1": replace(
        _MISTRAL,
        marks=(*_MISTRAL.marks[:2], " message['content']+eos_token+' '"),
        without=(*NOT_PLAIN, *_MISTRAL_WITHOUT, "|trim"),
        turns=_MISTRAL.turns | {"assistant": Turn((), (CONTENT, EOS), (" ",))},
        jinja=_mistral("'[INST] ' + content + ' [/INST]'", "message['content'] + eos_token + ' '"),
    ),
    "mistral-v0.2": _MISTRAL,
    "mistral-v1": replace(
        _MISTRAL,
        marks=("' [INST] '+", "' '+message['content']+eos_token"),
        turns={
            "user": Turn((" ", _INST, " "), (CONTENT, " ", _END_INST)),
            "assistant": Turn((), (" ", CONTENT, EOS)),
        },
        jinja=_mistral("' [INST] ' + content + ' [/INST]'", "' ' + message['content'] + eos_token"),
    ),
    "mistral-v3": replace(
        _MISTRAL,
        marks=("'[INST] '+", "+'[/INST]'", "' '+message['content']|trim+eos_token"),
        without=_MISTRAL_WITHOUT,
        turns={
            "user": Turn((_INST, " "), (CONTENT, _END_INST)),
            "assistant": Turn((), (" ", TRIMMED, EOS)),
        },
        fold=Fold(last=True),
        jinja=_mistral(
            "'[INST] ' + content + '[/INST]'",
            "' ' + message['content'] | trim + eos_token",
            "loop.revindex <= 2",
        ),
    ),
    "gemma": Template(
        marks=("bos_token", "'<start_of_turn>'+role+", "message['content']|trim", "<end_of_turn>"),
        without=("tool", "think", "You are", "date"),
        begin=(BOS,),
        turns=alike(
            (Special("<start_of_turn>"), "{role}\n"),
            (TRIMMED, Special("<end_of_turn>")),
            ("\n",),
            assistant="model",
        ),
        fold=Fold(),
        jinja=_SPLIT_SYSTEM + "{{ bos_token }}{% for message in loop_messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' }}"
        "{% if loop.first and system_message is defined %}{{ system_message + '\\n\\n' }}"
        "{% endif %}"
        "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ),
    "zephyr": Template(
        marks=("'<|user|>\\n'+message['content']+eos_token", "<|assistant|>", "<|system|>"),
        without=NOT_PLAIN,
        turns=alike((Named("<|{role}|>"), "\n"), (CONTENT, EOS), ("\n",)),
        jinja="{% for message in messages %}"
        + "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'system' %}"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}"
        "{% else %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    # For models without a template of their own: no token but the one that ends every text.
    "plain": Template(
        marks=("'User: '+message['content']", "'Assistant: '+message['content']+eos_token"),
        without=NOT_PLAIN,
        begin=(OPENING,),
        turns={
            "system": Turn((), (CONTENT,), ("\n",)),
            "user": Turn(("User: ",), (CONTENT,), ("\n",)),
            "assistant": Turn(("Assistant:",), (" ", CONTENT, EOS), ("\n",)),
        },
        jinja="{{ opening }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
        "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    ),
}


def canonical(jinja: str) -> str:
    """A Jinja text in one spelling, so that marks need not know the ways to write the same."""
    text = jinja.replace('"', "'").replace(".strip()", "|trim").replace("\n", "\\n")
    # A match begins where a run of white space does, or a long run would be tried from everywhere.
    return re.sub(r"(?<!\s)\s*([+|])\s*", r"\1", text)


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
    spelled = canonical(text)
    for row in TEMPLATES.values():
        if all(m in spelled for m in row.marks) and not any(no in spelled for no in row.without):
            return row
    raise ConfigError(
        f'the chat template of this model, "{one_line(text, 60)}", is not known: '
        f"choose one with --chat-template ({names})"
    )


def jinja(tokenizer: Tokenizer) -> str | None:
    """The Jinja text to save with a model: that of the chosen row, or what came with the model."""
    if tokenizer.chat_template is None:
        return tokenizer.template
    opening = "{{ bos_token }}" if tokenizer.add_bos else ""
    return find(tokenizer).jinja.replace("{{ opening }}", opening)


def ends(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end what a model says: EOS, and that of its template's answers."""
    found = {tokenizer.eos}
    if tokenizer.chat_template is not None or tokenizer.template is not None:
        try:
            said = find(tokenizer).turns["assistant"].said
            found |= {i for part in said if (i := _special(tokenizer, part)) is not None}
        except ConfigError:  # a template that is not known, and perhaps not asked for
            pass
    return frozenset(found)


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

    into, system = -1, ""
    if template.fold is not None and messages[0]["role"] == "system":
        system, messages, first = messages[0]["content"], messages[1:], 2
        users = [n for n, message in enumerate(messages, first) if message["role"] == "user"]
        if not users:
            raise ConfigError("messages: found system alone, allowed a user's message after it")
        into = users[-1 if template.fold.last else 0]

    parts: list[Part] = [(part, 0, 0) for part in template.begin]
    for n, message in enumerate(messages, first):
        turn, learned = template.turns[message["role"]], int(message["role"] == "assistant")
        fold = template.fold if n == into else None
        parts += [(part, 0, n) for part in turn.header]
        for part in turn.said:
            if part is CONTENT or part is TRIMMED:
                part = _content(message["content"], part is TRIMMED, system, fold)
            parts.append((part, learned, n))
        parts += [(part, 0, n) for part in turn.after]
    if reply:
        parts += [(part, 0, 0) for part in template.turns["assistant"].header]
    return _encode(tokenizer, parts)


def _content(text: str, trim: bool, system: str, fold: Fold | None) -> str:
    if fold is None:
        return text.strip() if trim else text
    front = fold.before + system + fold.after
    if trim and fold.whole:
        return (front + text).strip()
    return front + (text.strip() if trim else text)


def _special(tokenizer: Tokenizer, part: str) -> int | None:
    """The id of a part that is a special token, or None for a text."""
    if not isinstance(part, Special):
        return None
    if part is OPENING:
        found = tokenizer.bos if tokenizer.add_bos else None
    elif part is BOS:
        found = tokenizer.bos
    else:
        found = tokenizer.eos if part is EOS else tokenizer.special.get(part)
    if found is None and not isinstance(part, Named):
        raise ConfigError(f"the chat template needs the special token {part}, not here")
    return found


def _encode(tokenizer: Tokenizer, parts: list[Part]) -> tuple[list[int], list[int]]:
    """Parts (what, mask bit, message number) to ids; neighbouring texts of one bit are joined."""
    known = [(part, _special(tokenizer, part), bit, n) for part, bit, n in parts]
    known = [row for row in known if row[1] is not None or row[0] is not OPENING]
    ids: list[int] = []
    mask: list[int] = []
    waiting = ""  # texts to be encoded together
    for k, (part, special, bit, n) in enumerate(known):
        if special is not None:
            new = [special]
        else:
            waiting += part
            following = known[k + 1] if k + 1 < len(known) else None
            if following and following[1] is None and following[2] == bit:
                continue
            try:
                new = tokenizer.encode(waiting, after=ids[-1] if ids else None)
            except EncodeError as error:
                raise EncodeError(f'message {n}, field "content": {error}') from None
            waiting = ""
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
