"""A conversation of any published shape, as messages of role and content.

    {"messages": [{"role": "user", "content": "Hi"}, ...]}          OpenAI's fine-tuning files
    {"conversations": [{"from": "human", "value": "Hi"}, ...]}      ShareGPT
    -> [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

An assistant's message that is not to be learned keeps its "weight": 0. Which turns may follow each
other is the business of a chat template. Tools, pictures and sound are refused by field.
"""

from __future__ import annotations

from typing import Any

from minift.data.rows import Problem, Row, shown

Message = dict[str, Any]  # {"role", "content"}, and "weight": 0 of an answer that is not learned

ROLES = ("system", "user", "assistant")
SPEAKERS = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "bot": "assistant", "model": "assistant",
}  # fmt: skip
# Parts of a message or a row that change what a model reads; null and empty ones do not.
BEYOND_TEXT = ("tool_calls", "function_call", "tool_call_id", "audio", "images", "image")
TOOLS = ("tools", "functions")


def conversation_field(row: Row) -> str | None:
    """The field of a row that holds a conversation."""
    if "messages" in row:
        return "messages"
    return "conversations" if "conversations" in row else None


def messages_of(row: Row, field: str) -> list[Message]:
    """The checked turns of a row; its own field "system" (ShareGPT) comes first."""
    turns = row.get(field)
    if type(turns) is not list:
        if field not in row:
            raise Problem(field, "no such field", "a list of messages, in every row")
        raise Problem(field, shown(turns), "a list of messages")
    for name in TOOLS:
        if row.get(name):
            raise Problem(name, shown(row[name]), "none: tools are not trained")
    messages = [_message(turn, f"{field}[{k}]") for k, turn in enumerate(turns)]
    if not any(message["role"] == "assistant" for message in messages):
        raise Problem(field, "no assistant message", "at least one")
    if all("weight" in message for message in messages if message["role"] == "assistant"):
        raise Problem(field, "no assistant message with weight 1", "at least one to be learned")
    system = row.get("system")
    if field == "conversations" and type(system) is str and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _message(turn: object, field: str) -> Message:
    if not isinstance(turn, dict):
        raise Problem(field, shown(turn), 'an object with "role" and "content"')
    is_sharegpt = "from" in turn and "role" not in turn
    role_name, content_name = ("from", "value") if is_sharegpt else ("role", "content")
    speaker = turn.get(role_name)
    role = SPEAKERS.get(speaker) if type(speaker) is str else None
    if role is None:
        found = shown(speaker) if role_name in turn else "no such field"
        raise Problem(f"{field}.{role_name}", found, ", ".join(ROLES))
    for name in BEYOND_TEXT:
        if turn.get(name):
            raise Problem(f"{field}.{name}", shown(turn[name]), "none: only text is trained")
    if content_name not in turn:
        raise Problem(f"{field}.{content_name}", "no such field", "text")
    content = _content(turn[content_name], f"{field}.{content_name}")
    if role != "system" and not content.strip():
        raise Problem(f"{field}.{content_name}", "an empty text", "text")
    message: Message = {"role": role, "content": content}
    weight = turn.get("weight")
    if weight is not None:
        if type(weight) not in (int, float) or weight not in (0, 1):
            raise Problem(f"{field}.weight", shown(weight), "0 or 1")
        if weight == 0 and role == "assistant":
            message["weight"] = 0
    return message


def _content(content: object, field: str) -> str:
    """Text as it is, or the texts of OpenAI's content parts behind each other."""
    if type(content) is str:
        return content
    if not isinstance(content, list):
        raise Problem(field, shown(content), "text")
    texts = []
    for k, part in enumerate(content):
        at = f"{field}[{k}]"
        if not isinstance(part, dict):
            raise Problem(at, shown(part), 'an object with "type" and "text"')
        if part.get("type") != "text":
            found = shown(part["type"]) if "type" in part else "no such field"
            raise Problem(f"{at}.type", found, '"text"')
        if type(part.get("text")) is not str:
            found = shown(part["text"]) if "text" in part else "no such field"
            raise Problem(f"{at}.text", found, "text")
        texts.append(part["text"])
    return "".join(texts)
