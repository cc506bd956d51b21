"""Writes pieces.json: what sentencepiece and transformers make of two tiny models.

    python tests/golden/make_pieces.py

`ids` and `decoded` are the sentencepiece library's. The chats are rendered by transformers from
Jinja texts as they were published, shortened where tools or pictures come in, and tokenized by it
with special tokens recognised. `legacy` true: the tokenizer.json that Llama 2 was published with,
which puts a space at the front of every part between special tokens; false: transformers'
LlamaTokenizer as it is today, which does so at the start of the text only. `own` are the same from
the Jinja texts that minift saves. `fast` are tokenizer.json files of the first model, with the ids
that transformers finds through them.
"""

import base64
import io
import json
import random
import re
import sys
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from jinja2 import TemplateError
from tokenizers import decoders, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from minift.tokenizers.chat_templates import TEMPLATES

SENTENCES = [
    "The keeper climbs the stairs each evening and lights the lamp.",
    "Hello, keeper! What is the light? It was lit in 1899, they say.",
    "User: Assistant: system user assistant model [INST] [/INST] <<SYS>> <</SYS>>",
    "Ships pass by the rocks; nobody on board knows his name, café or naïve.",
    "Ein Leuchtturm steht am Meer. 灯塔在海边。",
]
TEXTS = ["", " ", "  ", "Hello", " Hello", "Hello, keeper!", "the  lamp\n\n the\tlamp ", "café",
         "灯塔 😀", "\x00\x01", "<s></s><unk>", "<0x41>", "[INST] Hi [/INST]", "▁the▁lamp", "1899",
         "e\u0301", "a\r\nb", "<start_of_turn>user", "\ufeffx", "x" * 50, "the" * 20]  # fmt: skip
CONVERSATIONS = [
    [{"role": "user", "content": "Hello, keeper!"}],
    [
        {"role": "user", "content": "What is the light?"},
        {"role": "assistant", "content": "The lamp, lit in 1899."},
    ],
    [
        {"role": "user", "content": " Hi \n"},
        {"role": "assistant", "content": " Hi. "},
        {"role": "user", "content": "\n\nAnd 灯塔?"},
        {"role": "assistant", "content": "在海边。😀"},
    ],
    [
        {"role": "system", "content": " Say little. "},
        {"role": "user", "content": " Hi"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": " Where is it? "},
    ],
    [
        {"role": "system", "content": "Say little."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": " Where?"},
        {"role": "assistant", "content": "There. "},
    ],
]
NOT_HERE = ("smollm2", "chatml", "llama3")  # whose tokens these models do not have
OWN = {
    name: row.jinja.replace("{{ opening }}", "{{ bos_token }}")
    for name, row in TEMPLATES.items()
    if name not in NOT_HERE
}
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
)
SPLIT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
)
V1_SPLIT = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
"""
PUBLISHED = {
    "llama2": SPLIT + "{% for message in loop_messages %}" + ALTERNATE
    + "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}",
    "mistral-v0.1": "{{ bos_token }}{% for message in messages %}" + ALTERNATE
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}",
    "mistral-v0.2": "{{ bos_token }}{% for message in messages %}" + ALTERNATE
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}",
    "mistral-v1": V1_SPLIT + """{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}}
    {%- endif %}
{%- endfor %}
""",
    "mistral-v3": V1_SPLIT.replace("'", '"') + """{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and false %}
            {{- "[AVAILABLE_TOOLS] [" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "gemma-1": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
}  # fmt: skip


def trained(**options):
    """A model of 400 pieces with bytes; few lines, repeated so that the trainer is content."""
    draw = random.Random(5)
    lines = [" ".join(draw.sample(line.split(), len(line.split()))) for line in SENTENCES * 20]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES + lines), model_writer=out, model_type="bpe",
        vocab_size=400, byte_fallback=True, normalization_rule_name="identity", num_threads=1,
        remove_extra_whitespaces=False, minloglevel=2, **options,
    )  # fmt: skip
    return out.getvalue()


def legacy_true(path, special):
    """As Llama 2's tokenizer.json: a space before every part, then every space as U+2581."""
    parts = SentencePieceExtractor(str(path)).extract(tokenizers.models.BPE)
    model = tokenizers.models.BPE(parts["vocab"], parts["merges"], fuse_unk=True,
                                  byte_fallback=True, unk_token="<unk>")  # fmt: skip
    made = tokenizers.Tokenizer(model)
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def rendered(oracle, template):
    """Number of the conversation, whether an answer shall follow, ids; not those it refuses."""
    for number, conversation in enumerate(CONVERSATIONS):
        for reply in (False, True) if conversation[-1]["role"] == "user" else (False,):
            try:
                ids = oracle.apply_chat_template(
                    conversation, chat_template=template, add_generation_prompt=reply,
                    tokenize=True, return_dict=False,
                )  # fmt: skip
            except TemplateError as error:
                if not re.search("alternate|[Ss]upported", str(error)):
                    raise
            else:
                yield number, reply, ids


def main():
    out = Path(__file__).with_name("pieces.json")
    work = Path(tempfile.mkdtemp())
    names = ["[INST]", "[/INST]"]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    models = {
        "plain": trained(),
        "tokens": trained(control_symbols=names, user_defined_symbols=turns),
    }
    golden = {
        "versions": {m.__name__: m.__version__ for m in (sentencepiece, tokenizers, transformers)},
        "models": {name: base64.b64encode(raw).decode() for name, raw in models.items()},
        "texts": TEXTS,
        "published": PUBLISHED,
        "conversations": CONVERSATIONS,
        "ids": {},
        "decoded": {},
        "own": OWN,
        "fast": [],
        "chats": [],
    }
    for name, raw in models.items():
        folder = work / name
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.model").write_bytes(raw)
        library = sentencepiece.SentencePieceProcessor(model_proto=raw)
        golden["ids"][name] = [library.encode(text) for text in TEXTS]
        golden["decoded"][name] = [library.decode(ids) for ids in golden["ids"][name]]
        special = ["<unk>", "<s>", "</s>", *(names + turns if name == "tokens" else [])]
        for legacy in (True, False):
            if legacy:
                oracle = legacy_true(folder / "tokenizer.model", special)
            else:
                oracle = LlamaTokenizer.from_pretrained(folder, legacy=False)
                oracle.add_special_tokens({"additional_special_tokens": special[3:]})
            if name == "plain":
                ids = [oracle(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
                document = json.loads(oracle.backend_tokenizer.to_str())
                golden["fast"].append({"legacy": legacy, "tokenizer": document, "ids": ids})
            for kind, texts in (("published", PUBLISHED), ("own", OWN)):
                for template, text in texts.items():
                    if not (template.startswith("gemma") and name == "plain"):
                        for row in rendered(oracle, text):
                            golden["chats"].append([name, legacy, kind, template, *row])
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, len(golden["chats"]))


if __name__ == "__main__":
    main()
