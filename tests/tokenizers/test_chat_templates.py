"""The named templates: what they write, by hand."""

from __future__ import annotations

from datetime import datetime

import pytest

from minift.tokenizers.chat_templates import TEMPLATES
from minift.tokenizers.jinja.render import render

SYSTEM = {"role": "system", "content": " Be brief. "}
TALK = [
    {"role": "user", "content": " Hi"},
    {"role": "assistant", "content": "<think>\n\nHm.\n</think>\n\n\nYes. "},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "No."},
]
LLAMA = "<|begin_of_text|>"


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def written(name: str, talk: list[dict[str, str]], reply: bool = False) -> str:
    return render(
        TEMPLATES[name].jinja,
        talk,
        datetime(2025, 1, 9),
        bos_token="<s>",
        eos_token="</s>",
        opening="<s>",
        add_generation_prompt=reply,
        tools=None,
        documents=None,
    )


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        ("qwen1.5", "You are a helpful assistant"),
        ("qwen2", "You are a helpful assistant."),
        ("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        ("qwen2.5-math", r"Please reason step by step, and put your final answer within \boxed{}."),
    ],
)
def test_a_default_system_message_gives_way_to_a_given_one(name: str, default: str) -> None:
    begin = f"<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\n Hi<|im_end|>\n"
    assert written(name, TALK[:1], reply=True) == begin + "<|im_start|>assistant\n"
    given = written(name, [SYSTEM, *TALK[:1]], reply=True)
    assert given.startswith("<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n Hi")
    assert default not in given


@pytest.mark.parametrize(
    ("name", "date"), [("llama3.1", "26 Jul 2024"), ("llama3.2", "09 Jan 2025")]
)
def test_llama_3_1_and_later_write_a_date(name: str, date: str) -> None:
    dates = f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
    begin = LLAMA + header("system") + dates
    talk = header("user") + "Hi<|eot_id|>" + header("assistant")
    assert written(name, TALK[:1], reply=True) == f"{begin}<|eot_id|>{talk}"
    assert written(name, [SYSTEM, TALK[0]], reply=True) == f"{begin}Be brief.<|eot_id|>{talk}"


def test_qwen3_writes_thoughts_for_the_last_question_only() -> None:
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    hi, why = user.format(" Hi"), user.format("Why?")
    thought = "<think>\nHm.\n</think>\n\nYes. <|im_end|>\n"
    assert written("qwen3", TALK[:2]) == hi + thought
    assert written("qwen3", TALK[:3], reply=True) == hi + "Yes. <|im_end|>\n" + why
    no_thought = "<think>\n\n</think>\n\nNo.<|im_end|>\n"
    assert written("qwen3", TALK) == hi + "Yes. <|im_end|>\n" + why + no_thought
    response = {"role": "user", "content": "<tool_response>1</tool_response>"}
    talk = [*TALK[:2], response, TALK[3]]
    assert written("qwen3", talk) == hi + thought + user.format(response["content"]) + no_thought


def test_qwen_1_5_leaves_the_last_answer_open() -> None:
    found = written("qwen1.5", TALK)
    assert found.endswith("<|im_start|>assistant\nNo.")
    assert found.count("<|im_end|>") == 4


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_writes_every_message_once_in_turn(name: str) -> None:
    talk = [SYSTEM, *TALK]
    found = written(name, talk)
    places = [found.index(text) for text in ("Be brief.", "Hi", "Yes.", "Why?", "No.")]
    if name == "mistral-v3":  # the system's text goes into the last question
        places = [*places[1:3], places[0], *places[3:]]
    assert places == sorted(places)
    assert found.count("Be brief.") == 1
