"""The chat templates that have a name: those of the families, in Jinja.

They are for a model that has no template of its own, or a wrong one (--chat-template); for the name
that a model's own is shown by; and for the system message that some published texts refuse or drop.
Each writes what the published template of its kind writes without tools. Where that has no turn for
the system's text, this one puts it in front of a user's message, as the family's later ones do:
into the first, for Mistral's v3 into the last, for which Mistral's own code does so, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    jinja: str
    tokens: tuple[str, ...] = ()  # special tokens without which it means nothing


def _chatml(system: str | None = None) -> Template:
    """<|im_start|>, the role, the message, <|im_end|>; `system` where a conversation has none."""
    first = (
        ""
        if system is None
        else "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\n" + system + "<|im_end|>\\n' }}{% endif %}"
    )
    return Template(
        first + "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    )


# In the loop over messages: those models know a question and its answer, in turn.
_IN_TURN = (
    "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
)
# A conversation that starts with a system message: its text, and the messages without it.
_SPLIT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
)


def _llama3(date: str | None = None) -> Template:
    """Llama 3; with a date, the system message of 3.1 and later that no conversation is without."""
    jinja = "{{ '<|begin_of_text|>' }}"
    messages = "messages"
    if date is not None:
        messages = "loop_messages"
        jinja += (
            _SPLIT_SYSTEM + "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n"
            "Cutting Knowledge Date: December 2023\\nToday Date: ' + " + date + " + '\\n\\n' }}"
            "{% if system_message is defined %}{{ system_message | trim }}{% endif %}"
            "{{ '<|eot_id|>' }}"
        )
    return Template(
        jinja + "{% for message in " + messages + " %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    )


def _mistral(user: str, answer: str, into: str = "loop.first") -> Template:
    """Mistral's forms differ in their spaces. How a message and an answer are written, and which
    message takes the system's text."""
    return Template(
        _SPLIT_SYSTEM
        + "{{ bos_token }}{% for message in loop_messages %}"
        + _IN_TURN
        + "{% set content = message['content'] %}"
        f"{{% if {into} and system_message is defined and message['role'] == 'user' %}}"
        "{% set content = system_message + '\\n\\n' + message['content'] %}{% endif %}"
        f"{{% if message['role'] == 'user' %}}{{{{ {user} }}}}"
        f"{{% else %}}{{{{ {answer} }}}}{{% endif %}}{{% endfor %}}",
        ("bos_token",),
    )


# What Qwen3 thought is written in the answers to the last question alone; an empty thought stands
# for none in the last of them. A tool's response counts as no question.
_QWEN3 = (
    "{% set last = namespace(question=messages | length - 1) %}{% for message in messages %}"
    "{% if message['role'] == 'user' and not (message['content'].startswith('<tool_response>') "
    "and message['content'].endswith('</tool_response>')) %}"
    "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% set thought, content = '', message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if message['role'] == 'assistant' and loop.index0 > last.question "
    "and (loop.last or thought) %}"
    "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)

_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_STEPS = "Please reason step by step, and put your final answer within \\\\boxed{}."
_CHATML = _chatml()

TEMPLATES = {
    "smollm2": _chatml(_SMOLLM),
    "chatml": _CHATML,
    # The first form of Qwen 1.5's leaves a conversation open that ends with an answer.
    "qwen1.5": Template(
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "{% if add_generation_prompt or not loop.last %}{{ '<|im_end|>\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
        "{{ '<|im_start|>assistant\\n' }}{% endif %}",
        _CHATML.tokens,
    ),
    "qwen2": _chatml("You are a helpful assistant."),
    "qwen2.5": _chatml(_QWEN),
    "qwen2.5-math": _chatml(_STEPS),
    "qwen3": Template(_QWEN3, _CHATML.tokens),
    "llama3": _llama3(),
    "llama3.1": _llama3("'26 Jul 2024'"),
    "llama3.2": _llama3("strftime_now('%d %b %Y')"),  # today's
    "llama2": Template(
        _SPLIT_SYSTEM
        + "{% for message in loop_messages %}"
        + _IN_TURN
        + "{% if loop.first and system_message is defined %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n'"
        " + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("bos_token",),
    ),
    # The numbers are those of Mistral's tokenizers, and of its first two models' texts.
    "mistral-v0.1": _mistral(
        "'[INST] ' + content + ' [/INST]'", "message['content'] + eos_token + ' '"
    ),
    "mistral-v0.2": _mistral("'[INST] ' + content + ' [/INST]'", "message['content'] + eos_token"),
    "mistral-v1": _mistral(
        "' [INST] ' + content + ' [/INST]'", "' ' + message['content'] + eos_token"
    ),
    "mistral-v3": _mistral(
        "'[INST] ' + content + '[/INST]'",
        "' ' + message['content'] | trim + eos_token",
        "loop.revindex <= 2",
    ),
    "gemma": Template(
        _SPLIT_SYSTEM
        + "{{ bos_token }}{% for message in loop_messages %}"
        + _IN_TURN
        + "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' }}"
        "{% if loop.first and system_message is defined %}{{ system_message + '\\n\\n' }}"
        "{% endif %}"
        "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("bos_token", "<start_of_turn>", "<end_of_turn>"),
    ),
    "zephyr": Template(
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'system' %}"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}"
        "{% else %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% endif %}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    # For models without a template of their own: no token but the one that ends every text.
    "plain": Template(
        "{{ opening }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
        "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    ),
}
