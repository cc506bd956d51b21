"""Decoding: the cached loop against the plain forward pass, and where text ends."""

from __future__ import annotations

import pytest
import torch

from minift.errors import ConfigError
from minift.generation.decode import Stops, decode, generate
from minift.generation.sampling import Sampling
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

TINY = ModelConfig("llama", 37, 24, 2, 4, 2, 6, 20, 64)
PROMPTS = [[5], [7, 30, 2, 2, 19], [11, 3, 36], [1, 2, 3, 4, 5, 6, 7, 8]]
EOS = 0


@pytest.fixture(scope="module")
def tiny():
    generator = torch.Generator().manual_seed(4)
    model = Transformer(TINY).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)
    return model.eval()


@torch.no_grad()
def recomputed(model, ids, count):
    """Greedy tokens with no cache and no batch: the whole row is read again at every step."""
    ids = list(ids)
    start = len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[start:]


def batch_sizes(model):
    """The rows of every forward pass from now on, and the hook to remove."""
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes, hook


@pytest.mark.parametrize("prompt", PROMPTS)
def test_cached_greedy_equals_the_forward_pass_of_every_step(tiny, prompt):
    assert decode(tiny, [prompt], max_new_tokens=20) == [recomputed(tiny, prompt, 20)]


def test_a_batch_of_unequal_prompts_equals_each_alone(tiny):
    together = decode(tiny, PROMPTS, max_new_tokens=12)
    assert together == [recomputed(tiny, p, 12) for p in PROMPTS]
    assert len(set(map(tuple, together))) > 1  # else it would show nothing


def test_a_stop_token_ends_its_row_only_and_is_left_out(tiny):
    free = [recomputed(tiny, p, 12) for p in PROMPTS]
    for stop in sorted({row[3] for row in free}):
        expected = [row[: row.index(stop)] if stop in row else row for row in free]
        assert decode(tiny, PROMPTS, max_new_tokens=12, stop=frozenset({stop})) == expected


def test_finished_rows_leave_the_batch(tiny):
    ends = [4, 1, 6, 2]  # tokens after which each row has enough
    sizes, hook = batch_sizes(tiny)
    heard = []
    out = decode(
        tiny,
        PROMPTS,
        max_new_tokens=12,
        finished=lambda row, ids: len(ids) == ends[row],
        emit=lambda row, token: heard.append((row, token)),
    )
    hook.remove()
    assert sizes == [4, 3, 2, 2, 1, 1]  # the prompts, then the rows that still need a token
    assert out == [recomputed(tiny, p, n) for p, n in zip(PROMPTS, ends, strict=True)]
    assert [[t for r, t in heard if r == row] for row in range(4)] == out
    assert [r for r, _ in heard] == [0, 1, 2, 3, 0, 2, 3, 0, 2, 0, 2, 2, 2]


def test_no_forward_pass_after_the_last_token(tiny):
    sizes, hook = batch_sizes(tiny)
    decode(tiny, PROMPTS, max_new_tokens=1)
    hook.remove()
    assert sizes == [4]


def test_a_penalty_counts_the_prompt_and_what_was_drawn(tiny):
    prompt = PROMPTS[1]
    harsh = Sampling(repetition_penalty=1e9)
    [out] = decode(tiny, [prompt], max_new_tokens=3, sampling=harsh)
    ids = list(prompt)
    for token in out:  # with so large a penalty: the best of the new ones, if one is positive
        with torch.no_grad():
            logits = tiny(torch.tensor([ids]))[0, -1]
        logits[ids] = -1e9
        assert logits.max() > 0
        assert token == int(logits.argmax())
        ids.append(token)


def test_draws_depend_on_the_seed_alone(tiny):
    def sampled(seed):
        torch.rand(1)  # the global generator has no say
        config = Sampling(temperature=1.5, sampling_seed=seed)
        return decode(tiny, PROMPTS, max_new_tokens=10, sampling=config)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


REPEATED = [PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[1], PROMPTS[0], PROMPTS[3]]


def test_equal_prompts_are_read_once(tiny):
    sizes, hook = batch_sizes(tiny)
    out = decode(tiny, REPEATED, max_new_tokens=5)
    hook.remove()
    assert sizes == [3, 6, 6, 6, 6]
    assert out == [recomputed(tiny, p, 5) for p in REPEATED]


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.7}, {"top_k": 5}])
def test_rows_draw_as_if_every_prompt_had_been_read(tiny, monkeypatch, options):
    config = Sampling(temperature=1.3, sampling_seed=3, **options)
    ends = [4, 9, 2, 9, 7, 1]

    def drawn():
        return decode(tiny, REPEATED, max_new_tokens=9, sampling=config,
                      finished=lambda row, ids: len(ids) == ends[row])  # fmt: skip

    shared = drawn()
    every = list(range(len(REPEATED)))
    monkeypatch.setattr(
        "minift.generation.decode.distinct_rows", lambda model, prompts: (every, every)
    )
    assert drawn() == shared
    assert list(map(len, shared)) == ends
    assert shared[0] != shared[3][:4]  # equal prompts have draws of their own


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_comes_back_even_after_an_error(tiny, training):
    def broken(row, token):
        raise OSError("the reader is gone")

    tiny.train(training)
    try:
        decode(tiny, PROMPTS, max_new_tokens=2)
        assert tiny.training is training
        with pytest.raises(OSError, match="reader"):
            decode(tiny, PROMPTS, max_new_tokens=2, emit=broken)
        assert tiny.training is training
    finally:
        tiny.eval()


def test_context_is_a_limit(tiny):
    full = [1] * 54
    assert len(decode(tiny, [full], max_new_tokens=10)[0]) == 10
    with pytest.raises(ConfigError, match=r"55 prompt tokens and 10 new ones exceed .* of 64"):
        decode(tiny, [[1], [*full, 1]], max_new_tokens=10)


def test_refusals(tiny):
    with pytest.raises(ConfigError, match="prompt 2 is empty"):
        decode(tiny, [[1], []], max_new_tokens=2)
    with pytest.raises(ConfigError, match="prompt 2 has ids outside of 0 to"):
        decode(tiny, [[1], [tiny.config.vocab]], max_new_tokens=2)
    with pytest.raises(ConfigError, match="max_new_tokens: found 0, allowed 1"):
        decode(tiny, [[1]], max_new_tokens=0)
    assert decode(tiny, [], max_new_tokens=5) == []


# Text: a model that always says the next token of a fixed story.


class Pieces:
    """A tokenizer whose token i is the i-th given piece of bytes; 0 ends and shows nothing."""

    eos, bos, add_bos = EOS, None, False
    also_ends: frozenset[int] = frozenset()
    template = chat_template = None

    def __init__(self, *pieces):
        self.pieces = [b"", *pieces]

    def encode(self, text, after=None):
        return [self.pieces.index(text.encode())] if text else []

    def decode_bytes(self, ids):
        return b"".join(self.pieces[i] for i in ids)


def story(*pieces):
    """(model, tokenizer): after piece i comes piece i + 1, after the last one the end token.

    The blocks add nothing, the embedding is one-hot, and the head looks up what follows.
    """
    size = len(pieces) + 1
    model = Transformer(ModelConfig("llama", size, size, 1, 1, 1, 2, 2, 128))
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.zero_()
        model.embed.weight.copy_(torch.eye(size))
        model.head.weight.copy_(torch.eye(size).roll(1, dims=0))
    return model.eval(), Pieces(*pieces)


def told(model, tokenizer, prompts, **options):
    """(texts, what was streamed for each row)."""
    heard = [[] for _ in prompts]
    texts = generate(
        model, tokenizer, prompts, threads=1, stream=lambda r, t: heard[r].append(t), **options
    )
    return texts, heard


def test_text_ends_at_the_end_token():
    made = story(b"a", b"b", b"c", b"d")
    texts, heard = told(*made, ["a", "c"])
    assert texts == ["bcd", "d"]
    assert heard == [["b", "c", "d"], ["d"]]
    assert generate(*made, ["a"], max_new_tokens=2, threads=1) == ["bc"]
    assert generate(*made, [[3, 2]], threads=1) == ["cd"]  # ids are taken as they are


def test_a_beginning_token_opens_a_text_but_not_ids():
    model, tokenizer = story(b"a", b"b", b"c")
    tokenizer.bos, tokenizer.add_bos = 1, True
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        generate(model, tokenizer, [[]], threads=1)
    assert generate(model, tokenizer, [""], threads=1) == ["bc"]


@pytest.mark.parametrize(("stop", "text"), [
    (("cd",), "b"), (("d", "cde"), "bc"), (("e", "c"), "b"), (("b",), ""), (("x",), "bcdef"),
    (("fg",), "bcdef"), (("defx", "ef"), "bcd"),
])  # fmt: skip
def test_stop_strings_are_cut_and_never_streamed(stop, text):
    texts, heard = told(*story(b"a", b"b", b"c", b"d", b"e", b"f"), ["a"], stop=stop)
    assert texts == [text]
    assert "".join(heard[0]) == text
    assert "" not in heard[0]


def test_a_stop_string_within_a_token_cuts_the_token():
    texts, heard = told(*story(b"a", b"one ", b"two. thr", b"ee"), ["a"], stop=(". ",))
    assert texts == ["one two"]
    assert "".join(heard[0]) == "one two"


def test_one_stop_string_need_not_be_in_a_list():
    assert generate(*story(b"a", b"b", b"c", b"d"), ["a"], stop="cd", threads=1) == ["b"]


def test_one_text_need_not_be_in_a_list_and_its_answer_is_none():
    made = story(b"a", b"b", b"c", b"d")
    assert generate(*made, "a", threads=1) == "bcd"
    assert generate(*made, made[1].encode("a"), threads=1) == "bcd"
    assert generate(*made, ["a"], threads=1) == ["bcd"]
    assert generate(*made, [], threads=1) == []
    warm = {"temperature": 0.01, "threads": 1}
    assert generate(*made, "a", samples=2, **warm) == ["bcd", "bcd"]


def test_one_row_stops_and_the_others_go_on():
    texts, heard = told(*story(b"a", b"b", b"c", b"d", b"e"), ["a", "c"], stop=("bc",))
    assert texts == ["", "de"]
    assert heard[0] == []


def test_characters_are_streamed_whole():
    smile = "🙂".encode()
    made = story(b"a", smile[:1], smile[1:3], smile[3:] + b"!", "é".encode()[:1])
    texts, heard = told(*made, ["a"])
    assert texts == ["🙂!�"]  # the last character never became whole
    assert heard == [["🙂!", "�"]]
    texts, heard = told(*made, ["a"], stop=("🙂",))
    assert texts == [""]
    assert heard == [[]]


def test_samples_stand_beside_each_other():
    made = story(b"a", b"b", b"c", b"d")
    warm = {"temperature": 0.01, "threads": 1}  # the story's next piece, all but surely
    assert generate(*made, ["a", "c"], samples=2, **warm) == ["bcd", "bcd", "d", "d"]
    wild = {"temperature": 50.0, "threads": 1, "max_new_tokens": 30}
    many = generate(*made, ["a"], samples=20, sampling_seed=1, **wild)
    assert len(set(many)) > 10
    assert many == generate(*made, ["a"] * 20, sampling_seed=1, **wild)
    for count, heat in ((0, 1.0), (2, 0.0)):
        with pytest.raises(ConfigError, match=rf"samples: found {count} at temperature {heat:g}"):
            generate(*made, ["a"], samples=count, temperature=heat)


def test_generate_refuses_what_it_does_not_know():
    made = story(b"a", b"b")
    with pytest.raises(ConfigError, match="tempreature"):
        generate(*made, ["a"], tempreature=1.0)
    with pytest.raises(ConfigError, match="top_p: found 2"):
        generate(*made, ["a"], top_p=2)
    for stop, found in (("", "an empty text"), (("x", ""), "an empty text"), ([7], "7")):
        with pytest.raises(ConfigError, match=f"stop: found {found}, allowed texts of one"):
            generate(*made, ["a"], stop=stop)


def test_stops_take_the_first_of_all():
    assert Stops(("b", "ab")).cut("xaby") == "x"
    assert Stops(("q",)).cut("xaby") is None
    assert Stops().cut("xaby") is None
