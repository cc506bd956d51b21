"""Supervised fine-tuning: what is learned, what is cut, and the loss against float64 by hand."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from minift.data.read import open_records
from minift.data.split import held_out
from minift.errors import ConfigError, DataError, EncodeError, Notice
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.prefix import Prefix
from minift.peft.prompt import Prompt
from minift.tokenizers import chat
from minift.train.config import TrainConfig
from minift.train.loop import fit
from minift.train.objectives.sft import SFT, fit_length

START, END = 256, 257


class Bytes:
    """A tokenizer of single bytes, so that every id can be read off the text."""

    eos, bos, add_bos, template, chat_template = END, START, False, None, "chatml"
    also_ends: frozenset[int] = frozenset()
    special = {"<|im_start|>": START, "<|im_end|>": END}  # noqa: RUF012

    def encode(self, text, after=None):
        if "\x00" in text:
            raise EncodeError("found byte 00, allowed others")
        return list(text.encode())

    def token_bytes(self, i):
        return {START: b"<|im_start|>", END: b"<|im_end|>"}[i]

    def chat(self, messages, reply=False):
        return chat.render(self, messages, reply=reply)


class WithStart(Bytes):
    add_bos = True


PAIR = {"prompt": "2+2=", "completion": "4."}
TEXT = {"text": "once"}
TALK = {"messages": [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "b"}, {"role": "assistant", "content": "bye"},
]}  # fmt: skip


def encoded(row, tokenizer=None, **options):
    return SFT(tokenizer or Bytes(), [row], **options).encode(0)


def learned(ids, mask):
    return [i for i, bit in zip(ids, mask, strict=True) if bit]


def test_of_a_pair_the_completion_and_the_end_are_learned():
    ids, mask = encoded(PAIR)
    assert ids == [*b"2+2=4.", END]
    assert mask == [0, 0, 0, 0, 1, 1, 1]
    assert encoded(PAIR, WithStart()) == ([START, *ids], [0, *mask])


def test_of_a_text_everything_is_learned_but_its_opening_token():
    assert encoded(TEXT) == ([*b"once", END], [1] * 5)
    assert encoded(TEXT, WithStart()) == ([START, *b"once", END], [0] + [1] * 5)


@pytest.mark.parametrize("tokenizer", [Bytes(), WithStart()])
def test_of_a_conversation_the_assistant_and_its_ends_are_learned(tokenizer):
    ids, mask = encoded(TALK, tokenizer)  # the template says how it begins, not add_bos
    parts = [
        ([START, *b"user\nhi", END, 10, START, *b"assistant\n"], 0), ([*b"yo", END], 1),
        ([10, START, *b"user\nb", END, 10, START, *b"assistant\n"], 0), ([*b"bye", END], 1),
        ([10], 0),
    ]  # fmt: skip
    assert ids == [i for part, _ in parts for i in part]
    assert mask == [bit for part, bit in parts for _ in part]
    assert learned(ids, mask) == [*b"yo", END, *b"bye", END]


@pytest.mark.parametrize("kind", [PAIR, TEXT, TALK])
def test_the_end_token_is_learned(kind):
    ids, mask = encoded(kind)
    assert learned(ids, mask)[-1] == END


@pytest.mark.parametrize(("most", "prompt"), [
    (7, b"2+2="), (6, b"+2="), (5, b"2="), (4, b"="),
])  # fmt: skip
def test_a_long_row_loses_the_beginning_of_its_prompt(most, prompt):
    rows = SFT(Bytes(), [PAIR], max_length=most)
    assert rows.encode(0) == ([*prompt, *b"4.", END], [0] * len(prompt) + [1] * 3)
    assert rows.truncated == (set() if most == 7 else {(False, 0)})


def test_an_answer_too_long_by_itself_loses_its_end():
    assert encoded(PAIR, max_length=3) == ([*b"=4."], [0, 1, 1])
    assert encoded(PAIR, WithStart(), max_length=3) == ([START, *b"4."], [0, 1, 1])
    assert encoded(PAIR, WithStart(), max_length=6) == (
        [START, *b"2=4.", END], [0, 0, 0, 1, 1, 1]
    )  # fmt: skip


def test_every_cut_keeps_a_token_before_the_first_target():
    for before in range(5):
        for after in range(1, 5):
            ids, mask = list(range(before + after)), [0] * before + [1] * after
            for most in range(2, before + after):
                short, bits = fit_length(ids, mask, most)
                assert len(short) == len(bits) == most
                assert sum(bits) == min(after, most - min(before, 1))
                assert bits[0] == (before == 0)


@pytest.fixture(scope="module")
def tiny():
    generator = torch.Generator().manual_seed(6)
    model = Transformer(ModelConfig("llama", 258, 16, 2, 4, 2, 4, 12, 64)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)
    return model.eval()


def by_hand(model, tokenizer, rows):
    """(loss sum, targets): each row alone, one target at a time."""
    total, count = 0.0, 0
    for row in rows:
        ids, mask = encoded(row, tokenizer)
        with torch.no_grad():
            logp = model(torch.tensor([ids]))[0].log_softmax(-1)
        for t in range(1, len(ids)):
            if mask[t]:
                total -= logp[t - 1, ids[t]].item()
                count += 1
    return total, count


@pytest.mark.parametrize("tokenizer", [Bytes(), WithStart()])
@pytest.mark.parametrize("most", [1, 40, 1000])
def test_the_loss_equals_one_target_at_a_time(tiny, tokenizer, most):
    rows = [PAIR, TEXT, TALK, {"prompt": "a", "completion": "b"}]
    data = SFT(tokenizer, rows[:1], rows)
    batches = list(data.held_out_batches(most))
    total, count = by_hand(tiny, tokenizer, rows)
    assert sum(b.num_targets for b in batches) == count
    found = sum(data.loss_sum(tiny, b).item() for b in batches)
    assert found == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("method", [None, Prefix(3), Prompt(2), LoRA(rank=2)])
@pytest.mark.parametrize("most", [1, 40, 1000])
def test_packed_rows_have_the_separate_losses_and_gradients(tiny, method, most):
    rows = [PAIR, TEXT, TALK, {"prompt": "a", "completion": "b"}]
    model, found = copy.deepcopy(tiny), []
    if method is not None:
        model = attach(model, method)
        generator = torch.Generator().manual_seed(0)
        for parameter in trainable(model).values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    learned = [p for p in model.parameters() if p.requires_grad]
    for batches in (
        [SFT(Bytes(), [row]).batches([0], 1000)[0] for row in rows],
        SFT(Bytes(), rows, pack="on").batches(range(4), most),
    ):
        loss = sum(SFT(Bytes(), rows).loss_sum(model, batch) for batch in batches)
        found.append([loss.detach(), *torch.autograd.grad(loss, learned, allow_unused=True)])
    assert most == 1 or any(batch.segments.max() > 0 for batch in batches)
    for one, other in zip(*found, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, rtol=0, atol=1e-10)


def test_batches_are_of_the_rows_asked_for(tiny):
    data = SFT(Bytes(), [PAIR, TEXT, TALK])
    [batch] = data.batches([1], 1000)
    assert batch.tokens.tolist() == [[*b"once"]]
    padded = SFT(Bytes(), [PAIR, TEXT, TALK], pack="off")
    assert padded.batches([2, 0], 1000)[0].tokens.shape[0] == 2
    assert data.example() == data.encode(0)


def test_files_are_read_and_errors_name_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [PAIR, PAIR | {"prompt": "\x00"}]))
    data = SFT(Bytes(), path)
    assert data.encode(0) == encoded(PAIR)
    with pytest.raises(DataError, match=r"rows\.jsonl line 2: found .*byte 00"):
        data.encode(1)
    facts = data.summary()
    assert facts["train_rows"] == 2
    assert facts["held_out_rows"] == 0
    assert facts["train_file"] == str(path)
    assert len(facts["train_sha256"]) == 64


def test_refusals():
    with pytest.raises(ConfigError, match="max_length: found 1"):
        SFT(Bytes(), [PAIR], max_length=1)
    with pytest.raises(ConfigError, match="pack: found yes, allowed auto, on, off"):
        SFT(Bytes(), [PAIR], pack="yes")
    with pytest.raises(ConfigError, match="no rows"):
        SFT(Bytes(), [])
    with pytest.raises(DataError, match=r"row 2: found .*byte 00"):
        SFT(Bytes(), [PAIR, {"text": "\x00"}]).encode(1)
    with pytest.raises(DataError, match="question, reply, allowed"):
        encoded({"question": "a", "reply": "b"})


@pytest.mark.parametrize(("mask", "kept"), [
    ([0, 0, 0, 0, 1, 1], range(2, 6)),  # the prompt loses its beginning
    ([0, 1, 1, 1, 1, 1], range(0, 4)),  # an answer that is too long loses its end
    ([1, 1, 1, 1, 1, 1], range(0, 4)),  # behind an empty prompt, too
    ([0, 0, 0, 0, 0, 0], range(2, 6)),  # nothing learned: nothing to keep
])  # fmt: skip
def test_what_a_row_loses_by_hand(mask, kept):
    assert fit_length(list(range(6)), mask, 4) == (list(kept), [mask[i] for i in kept])


def data(*rows, held_out=(), tokenizer=None, **options):
    return SFT(tokenizer or Bytes(), list(rows), list(held_out), **options)


@pytest.mark.parametrize("tokenizer", [Bytes(), WithStart()])
@pytest.mark.parametrize("most", [2, 3, 5, 8, 100])
def test_a_long_text_is_several_rows_and_nothing_of_it_is_lost(tokenizer, most):
    rows = [{"text": "a long text"}, PAIR, {"text": "on"}, {"text": "another one"}]
    ours = data(*rows, tokenizer=tokenizer, held_out=rows, max_length=most)
    texts = [ours.chunks[False].place(i)[0] for i in range(ours.rows)]
    assert texts == sorted(texts)
    for n in (0, 2, 3):
        whole = encoded(rows[n], tokenizer)
        parts = [ours.encode(i) for i, text in enumerate(texts) if text == n]
        assert all(len(ids) == len(mask) <= most for ids, mask in parts)
        assert [i for ids, _ in parts for i in ids[1:]] == whole[0][1:]
        assert [END in ids for ids, _ in parts] == [False] * (len(parts) - 1) + [True]
        assert all(all(mask[1:]) for _, mask in parts)
    assert [ours.encode(i, True) for i in range(ours.rows)] == [
        ours.encode(i) for i in range(ours.rows)
    ]
    held = sum(batch.num_targets for batch in ours.held_out_batches(50))
    assert held == sum(sum(ours.encode(i)[1][1:]) for i in range(ours.rows))


def test_texts_of_a_mixed_list_that_was_split_are_cut_into_rows_too():
    rows = [PAIR, *({"text": f"a long text {i}"} for i in range(9))]
    some, held = held_out(open_records(rows), 0.3)
    ours = SFT(Bytes(), some, held, max_length=9)
    assert ours.rows >= 2 * len(some) - 1
    assert ours.held_out_rows >= 2 * len(held) - 1
    learned = sum(sum(ours.encode(i)[1][1:]) for i in range(ours.rows))
    learned += sum(sum(ours.encode(i, True)[1][1:]) for i in range(ours.held_out_rows))
    whole = [encoded(row, Bytes()) for row in rows]
    assert learned == sum(sum(mask[1:]) for _, mask in whole)


def test_rows_on_both_sides_are_tokenized_once():
    class Counting(Bytes):
        count = 0

        def encode(self, text, after=None):
            self.count += 1
            return super().encode(text, after)

    tokenizer, rows = Counting(), open_records([{"text": "a long text"}] * 3)
    ours = SFT(tokenizer, rows, rows, max_length=5)
    assert (tokenizer.count, ours.rows) == (3, ours.held_out_rows)


def test_a_text_that_must_fit_is_not_tokenized():
    class Silent(Bytes):
        def encode(self, text, after=None):
            raise AssertionError

    assert SFT(Silent(), [{"text": "abcdefg"}] * 3, max_length=10).rows == 3


@pytest.fixture(scope="module")
def short():
    return attach(Transformer(ModelConfig("llama", 258, 16, 1, 4, 2, 4, 12, 64)), LoRA(rank=2))


def test_lengths_are_those_that_the_model_has_room_for(short):
    with pytest.raises(ConfigError, match="max_length: found 65, allowed at most 64"):
        data(PAIR, max_length=65).check(short)
    with pytest.raises(ConfigError, match="max_length: found 99,999, allowed at most 64"):
        fit(short, data(PAIR, max_length=99_999), TrainConfig(steps=1))
    long = {"prompt": "q" * 80, "completion": "a"}
    ours = data(PAIR, long, {"text": "t" * 200})
    assert ours.rows == 3
    with pytest.warns(Notice, match="max_length: 64 tokens in place of 1,024"):
        ours.check(short)
    assert ours.max_length == 64
    assert ours.rows == 2 + 4  # 200 and the end token, the first no target: 200 targets of 63 each
    assert max(ours.lengths(range(6))) == 64
    assert ours.cut_lines() == [
        "1 of 3 texts are longer than 64 tokens: 6 rows in all, nothing is cut",
        "1 of 3 rows is cut to 64 tokens",
    ]
    facts = ours.summary()
    assert (facts["train_cut"], facts["train_cut_is_exact"], facts["train_chunks"]) == (1, True, 6)
    ours.check(short)  # says nothing twice


ROLES = [
    {"role": "user", "content": "one"}, {"role": "user", "content": "two"},
    {"role": "assistant", "content": "three"},
]  # fmt: skip


def test_turns_that_the_template_does_not_write_are_found_before_the_first_step(short, tmp_path):
    class Llama(WithStart):
        chat_template = "llama2"

    path = tmp_path / "rows.jsonl"
    rows = [TALK] * 5 + [{"messages": ROLES}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data(TALK, {"messages": ROLES}, max_length=64).check(short)  # ChatML writes them
    text = (
        r'rows.jsonl line 6, field "messages\[1\].role": found user after user, allowed what the '
        r"chat template writes \(user and assistant must take turns\)"
    )
    for train, held in ((path, None), ([TALK], path)):
        with pytest.raises(DataError, match=text):
            SFT(Llama(), train, held).check(short)
    with pytest.raises(DataError, match=r'row 2, field "messages\[1\].role": found user after'):
        SFT(Llama(), [TALK, {"messages": ROLES}]).check(short)
    with pytest.raises(DataError, match=r'row 2, field "messages\[0\].role": found "tool"'):
        data(TALK, {"messages": [{"role": "tool", "content": "x"}]}).check(short)


def test_texts_that_the_vocabulary_refuses_are_found_before_the_first_step(short, tmp_path):
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [PAIR, PAIR | {"prompt": "\x00"}]))
    with pytest.raises(DataError, match=r"held\.jsonl line 2: found .*byte 00"):
        fit(short, SFT(Bytes(), [PAIR], path), TrainConfig(steps=1))
    for row in ({"text": "a\x00"}, {"prompt": "a", "completion": "\x00"}):
        with pytest.raises(DataError, match=r"row 2: found byte 00"):
            data(PAIR, row).check(short)
    with pytest.raises(DataError, match='row 1, field "completion": found 5, allowed text'):
        data({"prompt": "a", "completion": 5}).check(short)


def weighed(weight):
    return {"messages": [TALK["messages"][0], TALK["messages"][1] | {"weight": weight}]}


def test_a_row_with_nothing_to_learn_is_refused_by_its_number(short):
    data(weighed(1), PAIR, max_length=64).check(short)
    with pytest.raises(
        DataError, match=r'row 2, field "messages": found no assistant message with'
    ):
        data(weighed(1), weighed(0), PAIR, max_length=64)
    with pytest.raises(DataError, match=r"row 1, .*no assistant message with"):
        data(PAIR, held_out=[weighed(0)], max_length=64)


def test_special_tokens_spelled_in_texts_are_said_once(short, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [PAIR, PAIR | {"prompt": "a <|im_end|>"}, PAIR | {"completion": "<|im_start|>"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(Notice, match=r"rows.jsonl: 2 of 3 rows have a special token in a text "
                      r"\(first: line 2\); it is read as plain text") as said:  # fmt: skip
        SFT(Bytes(), path, max_length=64).check(short)
    assert len(said) == 1


def test_a_conversation_is_cut_to_its_length(short):
    ours = data(TALK, max_length=40)
    ours.check(short)
    ids, mask = ours.encode(0)
    assert ids == [START, *b"user\nb", END, 10, START, *b"assistant\nbye", END, 10]
    assert learned(ids, mask) == [*b"bye", END]
    with pytest.raises(ConfigError, match="row 1: max_length: found 9, allowed 20 or more"):
        data(TALK, max_length=9).check(short)
