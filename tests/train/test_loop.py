"""The loop: PEFT's own loss curve, and what must not change a gradient."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import minift
from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import load_model
from minift.errors import ConfigError, FormatError, Notice, StorageError
from minift.interop.adapter_files import load_adapter, save_adapter
from minift.interop.module_names import ModuleNames
from minift.kernels import choice
from minift.model.transformer import Transformer
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.slots import changes
from minift.train.config import TrainConfig
from minift.train.keeper import Diverged
from minift.train.loop import fit, order
from minift.train.objectives.batch import token_batches
from minift.train.objectives.classification import Classification
from minift.train.objectives.sft import SFT

GOLDEN = Path(__file__).parents[1] / "golden"


class Fixed:
    """An objective over given (ids, mask) rows."""

    def __init__(self, rows, held_out=()):
        self.train, self.held_out = list(rows), list(held_out)
        self.rows = len(self.train)

    packs, fits_cuda_graph, tokenizer = False, False, None

    def load_window(self, indices):
        pass

    def lengths(self, indices):
        return [len(self.train[i][0]) for i in indices]

    def batches(self, indices, max_tokens):
        return token_batches([self.train[i] for i in indices], max_tokens)

    def check(self, model):
        pass

    def held_out_batches(self, max_tokens):
        yield from token_batches(self.held_out, max_tokens) if self.held_out else ()

    loss_sum = SFT.loss_sum

    def example(self):
        return self.train[0]

    def summary(self):
        return {"objective": "fixed"}


def random_rows(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in lengths:
        ids = torch.randint(61, (n,), generator=generator).tolist()
        rows.append((ids, [0] * (n // 2) + [1] * (n - n // 2)))
    return rows


def adapted(dtype=torch.float64):
    model = attach(load_model(GOLDEN / "llama_gqa", dtype=dtype), LoRA(rank=2))
    with torch.no_grad():
        for k, (_, _, change) in enumerate(changes(model)):
            change.B.copy_(torch.sin(torch.arange(change.B.numel()) + k).view(change.B.shape) * 0.1)
    return model


def test_fifty_steps_follow_pefts_loss_curve(monkeypatch):
    data = np.load(GOLDEN / "training.npz")
    rows = []
    for tokens, mask, learn in zip(data["tokens"], data["mask"], data["learn"], strict=True):
        for t, m, wanted in zip(tokens, mask, learn, strict=True):
            rows.append((t[: m.sum()].tolist(), wanted[: m.sum()].tolist()))
    steps, batch = data["tokens"].shape[:2]
    model = load_model(GOLDEN / "training", dtype=torch.float64)
    load_adapter(model, GOLDEN / "training_adapter", trainable=True)
    in_order = [list(range(k * batch, (k + 1) * batch)) for k in range(steps)]
    monkeypatch.setattr("minift.train.loop.order", lambda *rest: iter(in_order))
    config = TrainConfig(steps=int(steps), lr=0.01, warmup=int(data["warmup"]) / steps, threads=1)
    run = fit(model, Fixed(rows), config)
    assert np.abs(np.array(run.losses) - data["losses"]).max() < 1e-9
    assert np.abs(np.array(run.norms) - data["grad_norms"]).max() < 1e-7
    theirs = ModuleNames(model).by_ours
    for path, _, change in changes(model):
        for letter in ("A", "B"):
            key = f"final.base_model.model.{theirs[path].path}.lora_{letter}.weight"
            expected = torch.from_numpy(data[key])
            torch.testing.assert_close(getattr(change, letter).data, expected, rtol=0, atol=1e-8)


def test_one_batch_is_learned_by_heart():
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=12))
    config = TrainConfig(steps=150, batch_size=2, lr=0.02, threads=1)
    run = fit(model, Fixed(random_rows([9, 9])), config)
    assert run.losses[0] > 3
    assert run.losses[-1] < run.losses[0] / 10


def test_the_kernels_are_those_that_were_asked_for():
    seen = []

    class Watched(Fixed):
        def loss_sum(self, model, batch):
            seen.append(choice.fused())
            return super().loss_sum(model, batch)

    def losses(**options):
        config = TrainConfig(steps=2, batch_size=2, lr=0.01, threads=1, **options)
        return fit(adapted(), Watched(random_rows([9, 9])), config).losses

    ours, readable = losses(), losses(kernels="reference")
    with choice.using("reference"):  # "auto" leaves it to the caller
        within = losses()
    assert seen == [True, True, False, False, False, False]
    assert readable == within
    assert ours == pytest.approx(readable, rel=1e-12)


def test_two_runs_are_the_same_bit_for_bit():
    losses = []
    for _ in range(2):
        model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2, dropout=0.3))
        config = TrainConfig(steps=5, batch_size=2, threads=1)
        losses.append(fit(model, Fixed(random_rows([5, 6, 7, 8, 9])), config).losses)
    assert losses[0] == losses[1]


def test_the_best_held_out_adapter_is_kept(tmp_path):
    rows, held = random_rows([9, 8]), random_rows([7, 7], seed=9)
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=4))
    config = TrainConfig(steps=20, batch_size=2, lr=0.05, eval_every=5, threads=1)
    objective = Fixed(rows, held)
    run = fit(model, objective, config, tmp_path / "run")
    assert [step for step, _ in run.evaluations] == [5, 10, 15, 20]
    best = min(run.evaluations, key=lambda pair: pair[1])
    assert run.best_step == best[0]
    fresh = load_adapter(load_model(GOLDEN / "llama_gqa"), tmp_path / "run")
    (batch,) = token_batches(held, 4096)
    again = float(objective.loss_sum(fresh, batch).detach()) / batch.num_targets
    assert again == pytest.approx(best[1], rel=1e-5)


def test_a_run_folder_says_everything(tmp_path):
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    fit(
        model,
        Fixed(random_rows([5, 6, 7])),
        TrainConfig(steps=4, batch_size=2, threads=1),
        tmp_path / "r",
    )
    lines = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) and line["targets"] > 0 for line in lines)
    facts = json.loads((tmp_path / "r/run.json").read_text())
    assert facts["config"]["steps"] == 4
    assert facts["methods"]["LoRA"]["rank"] == 2
    assert facts["trainable"] == sum(p.numel() for p in trainable(model).values())
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(model, Fixed(random_rows([5])), TrainConfig(steps=1), tmp_path / "r")


def test_a_loss_that_is_not_finite_leaves_the_weights_and_stops():
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    with torch.no_grad():
        model.norm.weight.fill_(3e38)
    with pytest.raises(Diverged, match="step 3"):
        fit(model, Fixed(random_rows([5, 6])), TrainConfig(steps=9, batch_size=2, threads=1))
    assert all(torch.equal(p, before[n]) for n, p in trainable(model).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_named_before_the_first_step(value, tmp_path):
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    with torch.no_grad():
        model.blocks[1].mlp.out.down.weight[2, 3] = value
        model.norm.weight[0] = value
    text = r'"model\.layers\.1\.mlp\.down_proj\.weight": found NaN or infinity, as in 1 more'
    with pytest.raises(FormatError, match=text):
        fit(model, Fixed(random_rows([5])), TrainConfig(steps=1), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_step_without_a_target_is_skipped():
    rows = [([1, 2, 3], [0, 0, 0])]
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    with pytest.raises(ConfigError, match="no gradient"):
        fit(model, Fixed(rows), TrainConfig(steps=2, batch_size=1, threads=1))
    assert all(torch.equal(p, before[n]) for n, p in trainable(model).items())


def test_ctrl_c_ends_after_the_step_and_saves(tmp_path):
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))

    def watch(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    config = TrainConfig(steps=50, batch_size=2, threads=1)
    run = fit(model, Fixed(random_rows([5, 6, 7])), config, tmp_path / "r", watch=watch)
    assert run.interrupted
    assert len(run.losses) == 2
    assert (tmp_path / "r/adapter/adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "r/run.json").read_text())["interrupted"] is True
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch):
    full = os.statvfs_result((1, 1, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    with pytest.raises(StorageError, match=r"this disk has 0\.0 MB left"):
        fit(model, Fixed(random_rows([5])), TrainConfig(steps=10**9), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_parameters_are_their_own_after_training(tmp_path, broken):
    """They are parts of a flat vector meanwhile, and may be copied and saved then, too."""
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    during = []

    def watch(progress):
        save_adapter(model, tmp_path / str(progress.step))
        again = trainable(copy.deepcopy(model))
        during.append({p.untyped_storage().data_ptr() for p in trainable(model).values()})
        for name, p in trainable(model).items():
            assert torch.equal(again[name], p)
            assert again[name].untyped_storage().nbytes() == 4 * p.numel()
        if broken and progress.step == 2:
            raise KeyError

    with pytest.raises(KeyError) if broken else nullcontext():
        fit(model, Fixed(random_rows([5, 6])), TrainConfig(steps=2, threads=1), watch=watch)
    assert [len(found) for found in during] == [1, 1]
    for p in trainable(model).values():
        assert p.untyped_storage().nbytes() == 4 * p.numel()
        assert p.grad is None
    again = load_adapter(load_model(GOLDEN / "llama_gqa"), tmp_path / "2")
    mine = {path: change for path, _, change in changes(model)}
    for path, _, change in changes(again):
        assert torch.equal(change.A, mine[path].A)
        assert torch.equal(change.B, mine[path].B)


def test_settings_come_back_after_training():
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    model.eval()
    threads = torch.get_num_threads()
    fit(
        model,
        Fixed(random_rows([5])),
        TrainConfig(steps=1, batch_size=1, threads=2, checkpointing=True),
    )
    assert torch.get_num_threads() == threads
    assert not model.training
    assert not model.checkpointing


def test_nothing_attached_says_what_to_do():
    model = load_model(GOLDEN / "llama_gqa")
    text = "nothing attached: minift.attach, or give lr for full training"
    with pytest.raises(ConfigError, match=text):
        fit(model, Fixed(random_rows([5])), TrainConfig(steps=1))


def full(tiny_tokenizer, rows, held_out=()):
    """An objective with a tokenizer, so that a whole model can be saved."""
    objective = Fixed(rows, held_out)
    objective.tokenizer = tiny_tokenizer
    return objective


def test_full_training_saves_the_best_model_from_the_moment_it_is_found(tiny_tokenizer, tmp_path):
    model, out, held = load_model(GOLDEN / "llama_gqa"), tmp_path / "r", random_rows([7, 7], seed=9)
    objective = full(tiny_tokenizer, random_rows([9, 8]), held)
    config = TrainConfig(steps=8, batch_size=2, lr=0.05, eval_every=2, threads=1)
    run = fit(model, objective, config, out)
    assert sorted(os.listdir(out)) == ["metrics.jsonl", "model", "run.json"]
    facts = json.loads((out / "run.json").read_text())
    assert (facts["weights"], facts["kept_step"]) == ("model", run.best_step)
    again = load_model(out / "model")
    for name, p in model.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], p)
    (batch,) = token_batches(held, 4096)
    loss = float(objective.loss_sum(again, batch).detach()) / batch.num_targets
    assert loss == pytest.approx(min(loss for _, loss in run.evaluations), rel=1e-5)
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(model, objective, config, out)
    fit(model, objective, config, out, overwrite=True)
    attach(model, LoRA(rank=2))  # and a run that trains an adapter leaves no model/ of an older one
    fit(model, Fixed(random_rows([5])), TrainConfig(steps=1, threads=1), out, overwrite=True)
    assert sorted(os.listdir(out)) == ["adapter", "metrics.jsonl", "run.json"]


def test_a_head_alone_is_trained_and_saved(tiny_tokenizer, tmp_path):
    base = replace(load_model(GOLDEN / "llama_gqa").config, vocab=tiny_tokenizer.vocab_size)
    model = with_labels(Transformer(base), ("bad", "good")).requires_grad_(False)
    model.head.requires_grad_(True)
    rows = [{"text": f"a{i}", "label": i % 2} for i in range(4)]
    objective = Classification(tiny_tokenizer, rows, labels=("bad", "good"))
    before = model.blocks[0].mlp.out.down.weight.clone()
    fit(model, objective, TrainConfig(steps=3, lr=0.1, threads=1), tmp_path / "r")
    again = load_model(tmp_path / "r/model")
    assert torch.equal(again.blocks[0].mlp.out.down.weight, before)
    assert torch.equal(again.head.out.weight, model.head.out.weight)
    assert again.config.labels == ("bad", "good")


def test_a_model_folder_that_no_run_wrote_is_never_replaced(tiny_tokenizer, tmp_path):
    model, out = load_model(GOLDEN / "llama_gqa"), tmp_path / "r"
    minift.save(model, tiny_tokenizer, out / "model")  # minift's own, but not a run's
    before = {path: path.read_bytes() for path in sorted((out / "model").iterdir())}
    objective, config = full(tiny_tokenizer, random_rows([5])), TrainConfig(steps=1, lr=1e-3)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds model, which"):
            fit(model, objective, config, out, overwrite=overwrite)
    attach(model, LoRA(rank=2))
    fit(model, Fixed(random_rows([5])), TrainConfig(steps=1, threads=1), out, overwrite=True)
    assert {path: path.read_bytes() for path in sorted((out / "model").iterdir())} == before


def test_full_training_without_a_tokenizer_says_that_no_weights_are_written(tmp_path):
    model = load_model(GOLDEN / "llama_gqa")
    with pytest.warns(Notice, match=r"no weights are written here.*minift\.save"):
        run = fit(
            model, Fixed(random_rows([5])), TrainConfig(steps=2, lr=1e-3, threads=1), tmp_path / "r"
        )
    assert sorted(os.listdir(tmp_path / "r")) == ["metrics.jsonl", "run.json"]
    assert run.kept_step == run.steps == 2


@pytest.mark.parametrize("order_", ["random", "length"])
@pytest.mark.parametrize("start", [0, 1, 3, 7, 8, 9, 19])
def test_a_start_in_the_middle_is_the_rest_of_the_order_and_tokenizes_nothing_before(start, order_):
    class Counted(Fixed):
        loaded = 0

        def load_window(self, indices):
            self.loaded += len(indices)

    objective = Counted([([1] * (2 + 7 * i % 11), [1] * (2 + 7 * i % 11)) for i in range(1500)])
    config = TrainConfig(batch_size=200, order=order_)  # 8 steps an epoch, 3 a window
    whole = list(zip(range(24), order(objective, config), strict=False))
    objective.loaded = 0
    rest = list(zip(range(start, 24), order(objective, config, start), strict=False))
    assert rest == whole[start:]
    objective.loaded = 0
    next(order(objective, config, start))
    assert objective.loaded == (300 if start % 8 > 5 else 600)


def test_nothing_trainable_is_refused():
    model = load_model(GOLDEN / "llama_gqa").requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is trainable"):
        fit(model, Fixed(random_rows([5])), TrainConfig(steps=1))


@pytest.mark.parametrize(("choice_", "packs", "grouped"), [
    ("auto", False, True), ("auto", True, False), ("random", False, False), ("length", True, True),
])  # fmt: skip
def test_which_rows_go_together(choice_, packs, grouped):
    objective = Fixed([([1] * (2 + 7 * i % 11), [1] * (2 + 7 * i % 11)) for i in range(32)])
    objective.packs = packs
    config = TrainConfig(steps=4, batch_size=8, order=choice_)
    rows = [batch for _, batch in zip(range(4), order(objective, config), strict=False)]
    assert sorted(row for batch in rows for row in batch) == list(range(32))
    spread = [max(objective.lengths(batch)) - min(objective.lengths(batch)) for batch in rows]
    assert (max(spread) <= 4) == grouped
