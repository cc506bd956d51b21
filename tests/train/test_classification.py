"""Classification: what a model reads of a text, the loss by hand, and what training does."""

from __future__ import annotations

import json

import pytest
import torch

from minift.checkpoints.labels import with_labels
from minift.data.read import open_records
from minift.errors import ConfigError, DataError
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft import files
from minift.peft.adapters import disabled
from minift.peft.lora import LoRA
from minift.peft.methods import METHODS, attach
from minift.tokenizers.wordpiece import WordPiece
from minift.train.classification import Classification, class_accuracy, collate, pieces, wrapped
from minift.train.loop import TrainConfig, fit

LABELS = ("bad", "good")
START = 256


class Bytes:
    """A tokenizer of single bytes."""

    eos, bos, add_bos = 257, START, False

    def encode(self, text):
        return list(text.encode())


class WithStart(Bytes):
    add_bos = True


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
    assert wrapped(ENCODER, "a good film", 9) == ([2, 5, 6, 8, 3], False)
    assert wrapped(ENCODER, "a good film", 5) == ([2, 5, 6, 8, 3], False)
    assert wrapped(ENCODER, "a good film", 4) == ([2, 5, 6, 3], True)


def test_a_decoder_reads_the_text_and_loses_the_beginning():
    assert wrapped(Bytes(), "film", 4) == ([*b"film"], False)
    assert wrapped(Bytes(), "film", 3) == ([*b"ilm"], True)
    assert wrapped(WithStart(), "film", 5) == ([START, *b"film"], False)
    assert wrapped(WithStart(), "film", 4) == ([START, *b"ilm"], True)


def test_rows_are_padded_on_the_right_with_their_mask():
    batch = collate([([5, 6, 7], 1), ([3], 0)])
    assert batch.tokens.tolist() == [[5, 6, 7], [3, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.labels.tolist() == [1, 0]
    assert (batch.count, batch.real) == (2, 4)


@pytest.mark.parametrize("most", [1, 9, 10, 24, 1000])
def test_pieces_hold_every_row_once_within_the_limit(most):
    lengths = [3, 9, 2, 5, 5, 10, 2, 8]
    cut = pieces([([k + 1] * n, k) for k, n in enumerate(lengths)], most)
    for places, batch in cut:
        assert batch.tokens.numel() <= most or batch.count == 1
        assert batch.labels.tolist() == places
        assert [int(row[0]) - 1 for row in batch.tokens] == places
    assert sorted(k for places, _ in cut for k in places) == list(range(8))
    assert sum(batch.real for _, batch in cut) == sum(lengths)


@pytest.mark.parametrize(("make", "tokenizer"), [(encoder, ENCODER), (decoder, WithStart())])
@pytest.mark.parametrize("most", [1, 25, 1000])
def test_the_loss_equals_one_row_at_a_time(make, tokenizer, most):
    model = with_labels(make(), LABELS, seed=5).double()
    texts = ["a good film", "a", "bad bad bad film a good a", "good"]
    rows = [{"text": text, "label": k % 2} for k, text in enumerate(texts)]
    data = Classification(tokenizer, rows, rows, labels=LABELS)
    batches = list(data.held_out_batches(most))
    assert sum(batch.count for batch in batches) == 4
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
    run = fit(model, data, TrainConfig(steps=60, batch=6, lr=rate, warmup=0), tmp_path / "run")
    assert run.losses[-1] < 0.5 * run.losses[0]
    accuracy, logp = class_accuracy(model, tokenizer, ROWS)
    assert (accuracy.right, accuracy.total) == (12, 12)
    torch.testing.assert_close(logp.exp().sum(1), torch.ones(12))
    for name, p in base.named_parameters():  # the base stays as it was, bit for bit
        assert torch.equal(p, body[name])
    assert torch.equal(model.head.out.weight, head)

    fresh = files.load_adapter(with_labels(make(), LABELS, seed=9), tmp_path / "run")
    _, again = class_accuracy(fresh, tokenizer, ROWS)
    torch.testing.assert_close(again, logp, rtol=1e-5, atol=1e-5)
    with disabled(model):
        assert not torch.equal(class_accuracy(model, tokenizer, ROWS)[1], logp)
    facts = json.loads((tmp_path / "run/run.json").read_text())["data"]
    assert (facts["objective"], facts["labels"]) == ("classification", list(LABELS))


def test_labels_travel_with_the_adapter(tmp_path):
    model = attach(with_labels(decoder(), ("schlecht", "für gut")), LoRA(rank=2))
    files.save_adapter(model, tmp_path / "a")
    found = files.stored(tmp_path / "a")
    assert (found.classifies, found.labels) == (True, ("schlecht", "für gut"))
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    with pytest.raises(ConfigError, match=r"is a classifier of schlecht, für gut, .*with_labels"):
        files.load_adapter(decoder(), tmp_path / "a")
    with pytest.raises(ConfigError, match="has the labels schlecht, für gut, and the model bad"):
        files.load_adapter(with_labels(decoder(), LABELS), tmp_path / "a")


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
    assert data.encode(1) == ([2, 5, 6, 8, 3], 1)
    assert data.example() == ([2, 5, 7, 8, 3], [0] * 5)
    facts = data.summary()
    assert (facts["template"], facts["target"]) == ("{text}", "label")
    assert len(facts["train_sha256"]) == 64
    records = open_records(path, template="{text}!", target="label", labels=LABELS)
    assert Classification(ENCODER, records).labels == LABELS
    for line, found in (('{"text": "a"}', "no such field"),
                        ('{"text": "a", "label": "fair"}', '"fair", allowed bad, good'),
                        ('{"text": "a", "label": null}', "null")):  # fmt: skip
        path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
        with pytest.raises(DataError, match=f'rows.jsonl line 2, field "label": found {found}'):
            Classification(ENCODER, path, labels=LABELS)


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
        ([{"text": "a", "label": "fair"}], {"labels": LABELS}, "found 'fair', allowed bad, good"),
        ([{"text": "a", "label": 2}], {"labels": LABELS}, "row 1: .* found 2"),
        ([{"text": "a", "label": True}], {"labels": LABELS}, "found True"),
        ([{"text": "a"}], {"labels": LABELS}, "found None"),
        ([{"text": " ", "label": 0}], {"labels": LABELS}, 'field "text"'),
    ],
)
def test_refusals(rows, options, message):
    with pytest.raises(ConfigError, match=message):
        Classification(ENCODER, rows, **options).encode(0)


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
