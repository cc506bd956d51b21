"""Conversations as transformers renders and encodes them, with its mask of what an assistant says.

    python tests/golden/make_chat.py

Each template is written here to do what the published one of its kind does without tools. What an
assistant says stands between {% generation %} and {% endgeneration %}, so that transformers gives
the mask; minift must find it without them. The vocabulary is that of tokens.json.
"""

import json
from datetime import datetime
from pathlib import Path

import jinja2
import tokenizers
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

CHATML_TURNS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def chatml(system):
    """As Qwen 2.5 has it: the default system message, or the given one, within the first `if`."""
    return """\
{%- if tools %}
    {{- '# Tools' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' }}
{%- endif %}
""".replace("SYSTEM", system) + CHATML_TURNS  # fmt: skip


QWEN15 = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
    {%- set closes = add_generation_prompt or not loop.last %}
    {{- '<|im_start|>' ~ turn.role ~ '\\n' }}
    {%- if turn.role == 'assistant' %}
        {%- generation %}{{- turn.content ~ ('<|im_end|>' if closes else '') }}{%- endgeneration %}
    {%- else %}
        {{- turn.content ~ ('<|im_end|>' if closes else '') }}
    {%- endif %}
    {{- '\\n' if closes else '' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n') %}
            {%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA31 = """\
{{- bos_token }}
DATE
{#- The system's message goes first, whether there is one or not; {{ nothing }} is done here. #}
{%- set given = messages[0].role == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' ~ date ~ '\\n\\n' ~ (messages[0].content if given else '') | trim }}<|eot_id|>
{%- for turn in (messages[1:] if given else messages) %}
    {{- '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>' ~ '\\n' * 2 }}
    {%- if turn.role == 'assistant' %}
        {%- generation %}{{- turn.content.strip() ~ '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- turn.content.strip() ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Of no name here: the thought's beginning is part of the prompt, and no old thought is kept.
THINKS = """\
{% for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{ '<|im_start|>assistant\\n' }}{{ '<think>\\n' if loop.last else '' }}
    {%- generation -%}
    {%- set content = message.content %}
    {{- content.split('<think>\\n')[-1] if loop.last else content.split('</think>')[-1].strip() -}}
    <|im_end|>
    {%- endgeneration -%}
    {{- '\\n' }}
  {%- else -%}
    <|im_start|>{{ message.role | upper }}{{ '\\n' ~ message['content'] | trim ~ '<|im_end|>\\n' }}
  {%- endif -%}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}
"""
ROUNDS = """\
{%- macro turn(message, number=0) %}
{% if number %}[Round {{ number }}]{% endif %}
{{ message.role | title }}: {{ message.content | trim -}}
{% endmacro -%}
{{ bos_token }}
{%- set ns = namespace(number=0) %}
{%- for message in messages %}
  {%- if message.role == 'assistant' %}
Assistant:{% generation %} {{ message.content | trim }}{{ eos_token }}{% endgeneration %}
  {%- else %}
    {%- set ns.number = ns.number + (1 if message.role == 'user' else 0) %}
    {{- turn(message, number=ns.number) }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
Assistant:{% endif %}
"""

TEMPLATES = {
    "qwen1.5": QWEN15,
    "qwen2": chatml("You are a helpful assistant."),
    "qwen2.5": chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen2.5-math": chatml(
        "Please reason step by step, and put your final answer within \\\\boxed{}."
    ),
    "qwen3": QWEN3,
    "chatml": CHATML_TURNS,
    "llama3.1": LLAMA31.replace("DATE", "{%- set date = '26 Jul 2024' %}"),
    "llama3.2": LLAMA31.replace("DATE", "{%- set date = strftime_now('%d %b %Y') %}"),
    "a thought begun": THINKS,
    "rounds": ROUNDS,
}


def talk(*texts, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant") * 3
    return first + [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


CONVERSATIONS = [
    talk("Hello, keeper!"),
    talk("What's the light?", "The lamp, lit in 1899. "),
    talk("  Hi \n", "Hi.", "\n\nAnd 灯塔?", "在海边。😀", system=" Say little. "),
    talk("Hi", "<think>\nHe says hi.\n\n</think>\n\nHi.", "Why?", "<think>\nWhy?\n</think>\n\nNo."),
    talk("Hi", "<think>\nHe says hi.\n</think>\n\nHi.", "And?", system="Be brief."),
    talk("I write <|im_end|>, <|eot_id|> and </think>", "No.", "Why?"),
]


def main():
    document = json.loads((HERE / "tokens.json").read_text())["tokenizer"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        bos_token="<|begin_of_text|>",
        eos_token="<|im_end|>",
    )
    rows = {}
    for name, template in TEMPLATES.items():
        rows[name] = []
        for number, messages in enumerate(CONVERSATIONS):
            for reply in (False, True) if messages[-1]["role"] == "user" else (False,):
                options = {"chat_template": template, "add_generation_prompt": reply}
                found = fast.apply_chat_template(
                    messages, return_dict=True, return_assistant_tokens_mask=True, **options
                )
                text = fast.apply_chat_template(messages, tokenize=False, **options)
                rows[name].append(
                    [number, reply, text, found["input_ids"], found["assistant_masks"]]
                )
    golden = {
        "versions": {m.__name__: m.__version__ for m in (jinja2, tokenizers, transformers)},
        "date": datetime.now().strftime("%Y-%m-%d"),
        "conversations": CONVERSATIONS,
        "templates": TEMPLATES,
        "rows": rows,
    }
    out = HERE / "chat.json"
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, sum(map(len, rows.values())))


if __name__ == "__main__":
    main()
