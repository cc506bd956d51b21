"""Classification: what a model reads of a text, the loss by hand, and what training does."""

from __future__ import annotations

import json

import pytest
import torch

from minift.checkpoints.labels import with_labels
from minift.data.read import open_records
from minift.errors import ConfigError, DataError
from minift.interop import adapter_files
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import disabled, room_left
from minift.peft.lora import LoRA
from minift.peft.methods import METHODS, attach
from minift.tokenizers.wordpiece import WordPiece
from minift.tokenizers.wrapping import after, twice_around
from minift.train.config import TrainConfig
from minift.train.evaluation.labels import class_accuracy
from minift.train.loop import fit
from minift.train.objectives.classification import (
    Classification,
    Encoded,
    label_batch,
    label_batches,
    shares,
    wrapped,
)

LABELS = ("bad", "good")
START = 256


class Bytes:
    """A tokenizer of single bytes."""

    eos, bos, add_bos, template, chat_template = 257, START, False, None, None
    also_ends: frozenset[int] = frozenset()

    def encode(self, text):
        return list(text.encode())

    def wrap(self, ids, other=None):
        return after(START if self.add_bos else None)(ids, other)


class WithStart(Bytes):
    add_bos = True


class BothEnds(Bytes):
    """Bytes in the tokens that RoBERTa has around texts, 256 and 257."""

    def wrap(self, ids, other=None):
        return twice_around(START, 257)(ids, other)


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a good bad film"
ENCODER = WordPiece.from_vocab("\n".join(WORDS.split()) + "\n", None, "vocab.txt")
ROWS = [{"text": f"a {LABELS[i % 2]} film", "label": LABELS[i % 2]} for i in range(12)]


def encoder(**changes):
    generator = torch.Generator().manual_seed(3)
    settings = {
        "norm": "layer", "norm_at": "post", "final_norm": False, "act": "gelu", "gated": False,
        "causal": False, "positions": "learned", "embed_norm": True, "token_types": 2,
        "qkv_bias": True, "out_bias": True, "mlp_bias": True, "head": "none", "pooler": True,
        "pool": "first", "label_bias": True,
    }  # fmt: skip
    config = ModelConfig("bert", 9, 16, 2, 4, 4, 4, 24, 32, **settings | changes)
    return filled(Transformer(config), generator)


def decoder():
    generator = torch.Generator().manual_seed(4)
    return filled(Transformer(ModelConfig("llama", 258, 16, 2, 4, 2, 4, 12, 64)), generator)


@torch.no_grad()
def filled(model, generator):
    for name, p in model.named_parameters():
        if p.dim() == 2 or name.endswith("bias"):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return model.eval()


def test_an_encoder_reads_its_wrapping_and_loses_the_end():
    assert wrapped(ENCODER, "a good film", 9) == ([2, 5, 6, 8, 3], [0] * 5, False)
    assert wrapped(ENCODER, "a good film", 5) == ([2, 5, 6, 8, 3], [0] * 5, False)
    assert wrapped(ENCODER, "a good film", 4) == ([2, 5, 6, 3], [0] * 4, True)
    # By its tokens around the text, not by its class.
    assert wrapped(BothEnds(), "film", 6) == ([START, *b"film", 257], [0] * 6, False)
    assert wrapped(BothEnds(), "film", 4) == ([START, *b"fi", 257], [0] * 4, True)


def test_a_decoder_reads_the_text_and_loses_the_beginning():
    assert wrapped(Bytes(), "film", 4) == ([*b"film"], [0] * 4, False)
    assert wrapped(Bytes(), "film", 3) == ([*b"ilm"], [0] * 3, True)
    assert wrapped(WithStart(), "film", 5) == ([START, *b"film"], [0] * 5, False)
    assert wrapped(WithStart(), "film", 4) == ([START, *b"ilm"], [0] * 4, True)


def test_two_texts_with_their_token_types():
    pair = wrapped(ENCODER, "a film", 16, "good")
    assert pair == ([2, 5, 8, 3, 6, 3], [0, 0, 0, 0, 1, 1], False)
    pair = wrapped(BothEnds(), "ab", 16, "c")
    assert pair == ([START, *b"ab", 257, 257, *b"c", 257], [0] * 7, False)
    assert wrapped(WithStart(), "ab", 4, "cd") == ([START, *b"b", START, *b"d"], [0, 0, 1, 1], True)
    assert wrapped(Bytes(), "ab", 3, "cd") == ([*b"bcd"], [0, 1, 1], True)


@pytest.mark.parametrize(
    ("one", "two", "room", "kept"),
    # transformers.AutoTokenizer(...)("a " * one, "a " * two, truncation=True, max_length=room + 3)
    [
        (5, 5, 10, (5, 5)), (9, 3, 10, (7, 3)), (3, 9, 10, (3, 7)), (9, 9, 10, (5, 5)),
        (9, 9, 9, (4, 5)), (12, 9, 9, (5, 4)), (9, 12, 9, (4, 5)), (20, 1, 4, (3, 1)),
        (1, 20, 2, (1, 1)), (30, 20, 7, (4, 3)), (6, 30, 7, (3, 4)), (2, 2, 3, (1, 2)),
    ],
)  # fmt: skip
def test_the_longer_of_two_texts_is_cut_first(one, two, room, kept):
    assert shares(one, two, room) == kept


def test_rows_are_padded_on_the_right_with_their_mask():
    batch = label_batch([Encoded([5, 6, 7], [0] * 3, 1), Encoded([3], [0], 0)])
    assert batch.tokens.tolist() == [[5, 6, 7], [3, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.targets.tolist() == [1, 0]
    assert (batch.num_targets, batch.num_tokens) == (2, 4)
    assert batch.token_types is None
    batch = label_batch([Encoded([5, 6, 7], [0, 1, 1], 1), Encoded([3], [0], 0)])
    assert batch.token_types.tolist() == [[0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("most", [1, 9, 10, 24, 1000])
def test_pieces_hold_every_row_once_within_the_limit(most):
    lengths = [3, 9, 2, 5, 5, 10, 2, 8]
    cut = label_batches([Encoded([k + 1] * n, [0] * n, k) for k, n in enumerate(lengths)], most)
    for places, batch in cut:
        assert batch.tokens.numel() <= most or batch.num_targets == 1
        assert batch.targets.tolist() == places
        assert [int(row[0]) - 1 for row in batch.tokens] == places
    assert sorted(k for places, _ in cut for k in places) == list(range(8))
    assert sum(batch.num_tokens for _, batch in cut) == sum(lengths)


@pytest.mark.parametrize(("make", "tokenizer"), [(encoder, ENCODER), (decoder, WithStart())])
@pytest.mark.parametrize("most", [1, 25, 1000])
def test_the_loss_equals_one_row_at_a_time(make, tokenizer, most):
    model = with_labels(make(), LABELS, seed=5).double()
    texts = ["a good film", "a", "bad bad bad film a good a", "good"]
    rows = [{"text": text, "label": k % 2} for k, text in enumerate(texts)]
    data = Classification(tokenizer, rows, rows, labels=LABELS)
    batches = list(data.held_out_batches(most))
    assert sum(batch.num_targets for batch in batches) == 4
    expected = 0.0
    for text, row in zip(texts, rows, strict=True):  # by hand
        ids = tokenizer.encode(text)
        ids = [2, *ids, 3] if tokenizer is ENCODER else [START, *ids]
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), hidden_only=True)[0]
            x = torch.tanh(model.pooler(hidden[0])) if model.pooler is not None else hidden[-1]
            expected -= model.head.out(x).log_softmax(-1)[row["label"]].item()
    with torch.no_grad():
        found = sum(data.loss_sum(model, batch).item() for batch in batches)
    assert found == pytest.approx(expected, rel=1e-5)  # the loss itself is float32


@pytest.mark.parametrize("word", METHODS)
@pytest.mark.parametrize(("make", "tokenizer"), [(encoder, ENCODER), (decoder, Bytes())])
def test_every_method_learns_the_labels_with_a_head_of_its_own(word, make, tokenizer, tmp_path):
    base = make()
    body = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = with_labels(base, LABELS, seed=1)
    head = model.head.out.weight.detach().clone()
    attach(model, METHODS[word][0](), seed=1)
    data = Classification(tokenizer, ROWS, ROWS, labels=LABELS)
    rate = {"ptuning": 0.01}.get(word, 0.03)
    run = fit(model, data, TrainConfig(steps=60, batch_size=6, lr=rate, warmup=0), tmp_path / "run")
    assert run.losses[-1] < 0.5 * run.losses[0]
    accuracy, logp = class_accuracy(model, tokenizer, ROWS)
    assert (accuracy.right, accuracy.total) == (12, 12)
    torch.testing.assert_close(logp.exp().sum(1), torch.ones(12))
    for name, p in base.named_parameters():  # the base stays as it was, bit for bit
        assert torch.equal(p, body[name])
    assert torch.equal(model.head.out.weight, head)

    fresh = adapter_files.load_adapter(with_labels(make(), LABELS, seed=9), tmp_path / "run")
    _, again = class_accuracy(fresh, tokenizer, ROWS)
    torch.testing.assert_close(again, logp, rtol=1e-5, atol=1e-5)
    with disabled(model):
        assert not torch.equal(class_accuracy(model, tokenizer, ROWS)[1], logp)
    facts = json.loads((tmp_path / "run/run.json").read_text())["data"]
    assert (facts["objective"], facts["labels"]) == ("classification", list(LABELS))


def test_labels_travel_with_the_adapter(tmp_path):
    model = attach(with_labels(decoder(), ("schlecht", "für gut")), LoRA(rank=2))
    adapter_files.save_adapter(model, tmp_path / "a")
    found = adapter_files.stored(tmp_path / "a")
    assert (found.classifies, found.labels) == (True, ("schlecht", "für gut"))
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    given = adapter_files.load_adapter(decoder(), tmp_path / "a", trainable=True)  # a head with it
    assert given.config.labels == ("schlecht", "für gut")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(given(tokens), model(tokens))
    with pytest.raises(ConfigError, match="has the labels schlecht, für gut, and the model bad"):
        adapter_files.load_adapter(with_labels(decoder(), LABELS), tmp_path / "a")


def test_accuracy_of_rows_in_their_order():
    model = with_labels(encoder(), LABELS)
    with torch.no_grad():
        model.head.out.weight.zero_()
        model.head.out.bias.copy_(torch.tensor([0.0, 1.0]))  # always good
    rows = [{"text": "a film " * (i % 5 + 1), "label": int(i < 3)} for i in range(10)]
    seen = []
    accuracy, logp = class_accuracy(model, ENCODER, rows, progress=seen.append)
    assert (accuracy.right, accuracy.total, sum(seen)) == (3, 10, 10)
    assert not model.training
    torch.testing.assert_close(logp.exp()[:, 1], torch.full((10,), 0.7310586))


def test_files_with_text_and_label_need_no_template(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = Classification(ENCODER, path, labels=LABELS)
    assert data.encode(1) == ([2, 5, 6, 8, 3], [0] * 5, 1)
    assert data.example() == ([2, 5, 7, 8, 3], [0] * 5)
    facts = data.summary()
    assert (facts["template"], facts["target"]) == ("{text}", "label")
    assert len(facts["train_sha256"]) == 64
    records = open_records(path, template="{text}!", target="label", labels=LABELS)
    assert Classification(ENCODER, records).labels == LABELS
    for line, found in (('{"text": "a"}', "no such field"),
                        ('{"text": "a", "label": "fair"}', '"fair", which is not in --labels'),
                        ('{"text": "a", "label": null}', "null")):  # fmt: skip
        path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
        with pytest.raises(DataError, match=f'rows.jsonl line 2, field "label": found {found}'):
            Classification(ENCODER, path, labels=LABELS)


PAIRS = (
    '{"text": "a film", "text_pair": "good", "label": "good"}\n'
    '{"text": "a", "text_pair": "bad film", "label": 0}\n'
)


def test_files_with_two_texts(tmp_path):
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(PAIRS)
    data = Classification(ENCODER, lines, labels=LABELS)
    assert data.encode(0) == ([2, 5, 8, 3, 6, 3], [0, 0, 0, 0, 1, 1], 1)
    assert data.encode(1) == ([2, 5, 3, 7, 8, 3], [0, 0, 0, 1, 1, 1], 0)
    assert data.summary()["pair"] == "{text_pair}"
    table = tmp_path / "pairs.csv"
    table.write_text("premise,hypothesis,label\na film,good,good\n")
    records = open_records(table, template="{premise}", pair="a {hypothesis}", target="label",
                           labels=LABELS)  # fmt: skip
    assert records[0] == {"prompt": "a film", "completion": " good", "pair": "a good"}
    data = Classification(ENCODER, records)
    assert data.encode(0) == ([2, 5, 8, 3, 5, 6, 3], [0, 0, 0, 0, 1, 1, 1], 1)
    rows = [{"text": "a film", "text_pair": "good", "label": 1}, {"text": "a", "label": 0}]
    data = Classification(ENCODER, rows, labels=LABELS)
    assert data.encode(0).types == [0, 0, 0, 0, 1, 1]
    assert data.encode(1) == ([2, 5, 3], [0] * 3, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label": "bad"}', 'line 3, field "text_pair": found no such field'),
        ('{"text": "a", "text_pair": 1.5, "label": 2}', 'line 3, field "label"'),
        ('{"text": "a", "text_pair": " ", "label": 1}', 'field "text_pair": found an empty text'),
        ('{"text": "a", "text_pair": [], "label": 1}', 'field "text_pair": found a list'),
    ],
)
def test_a_row_without_its_second_text_is_refused(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(PAIRS + line + "\n")
    with pytest.raises(DataError, match=message):
        Classification(ENCODER, path, labels=LABELS)


def test_a_second_text_that_the_first_row_lacks_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "a", "label": 0}\n' + PAIRS)
    with pytest.raises(DataError, match='line 2, field "text_pair": found "good", allowed no such'):
        Classification(ENCODER, path, labels=LABELS)


@pytest.mark.parametrize("types", [2, 1, 0])
def test_the_model_reads_the_token_types_that_it_has(types):
    model = with_labels(encoder(token_types=types), LABELS, seed=2)
    rows = [
        {"text": "a film", "text_pair": "good", "label": 1},
        {"text": "a good film", "label": 0},
    ]
    _, logp = class_accuracy(model, ENCODER, rows)
    for k, (ids, kinds) in enumerate([([2, 5, 8, 3, 6, 3], [0, 0, 0, 0, 1, 1]),
                                      ([2, 5, 6, 8, 3], [0] * 5)]):  # fmt: skip
        kinds = torch.tensor([kinds]) if types == 2 else None
        with torch.no_grad():
            alone = model(torch.tensor([ids]), token_types=kinds)[0].log_softmax(-1)
        torch.testing.assert_close(logp[k], alone)


def test_all_that_the_model_has_room_for_is_read():
    model = with_labels(encoder(), LABELS, seed=2)  # 32 positions
    rows = [{"text": "a good film " * 10, "label": 1}, {"text": "a good film " * 11, "label": 1}]
    _, logp = class_accuracy(model, ENCODER, rows)
    for k in range(2):
        ids = [2, *([5, 6, 8] * 10), 3]
        with torch.no_grad():
            alone = model(torch.tensor([ids]))[0].log_softmax(-1)
        torch.testing.assert_close(logp[k], alone)
    attach(model, METHODS["prompt"][0](prompt_tokens=5))
    assert room_left(model) == 27
    class_accuracy(model, ENCODER, rows)  # no more than that
    attach(model, METHODS["prefix"][0](prefix_tokens=7), name="other")
    assert room_left(model) == 25
    class_accuracy(model, ENCODER, rows)


def test_a_length_without_room_for_the_texts_is_refused():
    data = Classification(BothEnds(), [{"text": "a", "text_pair": "b", "label": 0}],
                          labels=LABELS, max_length=5)  # fmt: skip
    with pytest.raises(ConfigError, match="max_length: found 5, allowed 6 or more: 4 special"):
        data.encode(0)


def test_a_long_text_is_counted():
    data = Classification(ENCODER, ROWS, labels=LABELS, max_length=4)
    assert data.lengths([0, 1]) == [4, 4]
    assert data.truncated == {(False, 0), (False, 1)}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {}, "labels: found fewer than two"),
        (ROWS, {"labels": ("good",)}, "labels: found fewer than two"),
        (ROWS, {"labels": LABELS, "max_length": 2}, "max_length: found 2"),
        ([], {"labels": LABELS}, "train: found no rows"),
        ([{"text": "a", "label": "fair"}], {"labels": LABELS}, 'found "fair", which'),
        ([{"text": "a", "label": 2}], {"labels": LABELS}, "row 1, .* found 2"),
        ([{"text": "a", "label": True}], {"labels": LABELS}, "found true"),
        ([{"text": "a"}], {"labels": LABELS}, "no column label"),
        ([{"text": " ", "label": 0}], {"labels": LABELS}, 'field "text"'),
    ],
)
def test_refusals(rows, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        Classification(ENCODER, rows, **options).encode(0)


def test_held_out_labels_in_another_order_are_refused():
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    records = [open_records(rows, template="{text}", target="label", labels=names)
               for names in (("a", "b"), ("b", "a"))]  # fmt: skip
    with pytest.raises(ConfigError, match="held_out: found the labels b, a, allowed those of "
                       "train, a, b"):  # fmt: skip
        Classification(ENCODER, *records)


def test_a_model_without_a_head_for_these_labels_is_told(tmp_path):
    data = Classification(Bytes(), ROWS, labels=LABELS)
    [batch] = data.batches([0, 1], 1000)
    with pytest.raises(ConfigError, match=r"no head for 2 labels; minift\.with_labels"):
        data.loss_sum(decoder(), batch)
    with pytest.raises(ConfigError, match="has no labels"):
        class_accuracy(decoder(), Bytes(), ROWS)
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,good\n")
    records = open_records(path, template="{text}", target="label", labels=("good", "bad"))
    with pytest.raises(ConfigError, match="found good, bad, allowed the model's own, bad, good"):
        class_accuracy(with_labels(decoder(), LABELS), Bytes(), records)
    with pytest.raises(ConfigError, match="found bad, good, and the data has good, bad"):
        Classification(Bytes(), records, labels=LABELS)


def test_labels_in_one_text_are_refused_not_read_by_the_character():
    rows = [{"text": "good film", "label": "a"}]
    with pytest.raises(ConfigError, match='labels: found the text "ab", allowed a list of names'):
        Classification(Bytes(), rows, labels="ab")
