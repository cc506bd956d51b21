"""Each Triton kernel beside its readable twin in float64, on the device at hand.

The value and every gradient of odd sizes, relative to the truth's norm, in float32 and bf16; the
same bits at a second run (of torch's attention over texts, whose sums are atomic, not asked); and
dropout beside explicit products with its mask, drawn anew at every replay of a graph. Then `fit`:
its captured step beside the ordinary loop, over ragged rows, several micro-batches a step,
evaluations. A check that raises has failed; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minift.kernels import choice
from minift.kernels.activations import ACTIVATIONS
from minift.kernels.attention import dispatch as attention
from minift.kernels.attention.packed import PackedSequences
from minift.kernels.attention.varlen import suits
from minift.kernels.choice import using
from minift.kernels.cross_entropy.dispatch import linear_cross_entropy
from minift.kernels.lora.dispatch import adapted_linears
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp.dispatch import mlp
from minift.kernels.norm.dispatch import rms_norm
from minift.kernels.rope.dispatch import rotate_both
from minift.model.attention_mask import dense_mask
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.runtime import recorded
from minift.train.chunks import Chunks
from minift.train.config import TrainConfig
from minift.train.loop import fit
from minift.train.objectives.batch import Batch, Window, token_batches
from minift.train.objectives.sft import SFT

# float32: sums of 600 numbers; bf16: e, p, h and more are rounded.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
CURVES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of losses and norms, a dozen steps on
Run = Callable[[], Sequence[Tensor]]  # -> values


@dataclass(frozen=True)
class On:
    """Draws what a kernel needs, on one device."""

    device: str

    def drawn(self, *shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=self.device) * std).to(dtype)

    def adapted(
        self, inputs: int, outputs: int, rank: int, dtype: torch.dtype, drop: float = 0
    ) -> Adapted:
        linear = (
            nn.Linear(inputs, outputs, bias=False, device=self.device)
            .to(dtype)
            .requires_grad_(False)
        )
        if not rank:
            return Adapted(linear)
        A, B = self.drawn(rank, inputs, std=inputs**-0.5), self.drawn(outputs, rank, std=0.1)
        return Adapted(linear, A.requires_grad_(), B.requires_grad_(), 2.0, drop)


def thin_of(members: Sequence[Adapted]) -> list[Tensor]:
    return [t for m in members for t in (m.A, m.B) if t is not None]


def both(run: Run, wanted: list[Tensor]) -> list[Tensor]:
    """Values, and gradients from slopes that differ everywhere."""
    ys = run()
    gs = [torch.cos(torch.arange(y.numel(), device=y.device)).view(y.shape).to(y.dtype) for y in ys]
    return [*(y.detach() for y in ys), *torch.autograd.grad(list(ys), wanted, gs)]


def exactly(run: Run, wanted: list[Tensor], modules: Sequence[nn.Module]) -> list[Tensor]:
    """The readable twin in float64, on the very same numbers: each tensor's data for a while."""
    tensors = [*wanted, *(p for m in modules for p in m.parameters())]
    kept = [t.data for t in tensors]
    try:
        for t in tensors:
            t.data = t.data.double()
        with using("reference"):
            return both(run, wanted)
    finally:
        for t, data in zip(tensors, kept, strict=True):
            t.data = data


def check_cases(on: On, dtype: torch.dtype) -> dict[str, tuple[Run, list[Tensor], list[nn.Module]]]:
    """Odd sizes, one row, none that is a multiple of a tile; dropout is checked apart.

    On a CPU the two smaller sizes of each.
    """
    some = slice(None if on.device == "cuda" else 2)
    found: dict[str, tuple[Run, list[Tensor], list[nn.Module]]] = {}

    def table(*shape: int) -> nn.Module:
        """Constants that follow the inputs to float64."""
        kept = nn.Module()
        kept.value = nn.Parameter(on.drawn(*shape, dtype=dtype), requires_grad=False)
        return kept

    for shape in ((1, 1, 576), (3, 7, 129), (2, 128, 2048))[some]:
        for offset in (0.0, 1.0):
            x, w = on.drawn(*shape, dtype=dtype).requires_grad_(), table(shape[-1])
            found[f"norm {shape} + {offset:g}"] = (
                lambda x=x, w=w, o=offset: [rms_norm(x, w.value, 1e-5, o)], [x], [w]
            )  # fmt: skip
    heads = ((1, 1, 2, 1, 64, 64), (3, 7, 9, 3, 80, 32), (2, 128, 4, 4, 80, 32))
    for B, T, H, K, width, turned in heads[some]:
        q, k = (
            on.drawn(B, T, n, width, dtype=dtype).transpose(1, 2).requires_grad_() for n in (H, K)
        )
        angles = table(2, B, 1, T, turned // 2)
        found[f"rope {B, T, H, K, width, turned}"] = (
            lambda q=q, k=k, a=angles: rotate_both(q, k, a.value[0], a.value[1]), [q, k], [angles]
        )  # fmt: skip
    for N, V, cap in ((1, 1000, None), (7, 5001, 30.0), (200, 49_152, None))[some]:
        head = nn.Linear(64, V, device=on.device).to(dtype).requires_grad_(False)
        h, targets = (
            on.drawn(N, 64, dtype=dtype).requires_grad_(),
            torch.randint(V, (N,)).to(on.device),
        )

        def scores(h: Tensor, head: nn.Linear = head, cap: float | None = cap) -> Tensor:
            z = head(h)
            return z if cap is None else cap * torch.tanh(z / cap)

        found[f"cross-entropy {N, V, cap}"] = (
            lambda h=h, head=head, t=targets, cap=cap, scores=scores: [
                linear_cross_entropy(h, head, scores, t, cap)
            ],
            [h], [head],
        )  # fmt: skip
    for N, ranks in ((1, (8, 8, 8)), (7, (1, 0, 64)), (1000, (16, 3, 8)))[some]:
        x = on.drawn(N, 200, dtype=dtype).requires_grad_()
        members = [on.adapted(200, o, r, dtype) for o, r in zip((576, 65, 129), ranks, strict=True)]
        found[f"lora {N, ranks}"] = (
            lambda x=x, m=members: adapted_linears(x, m), [x, *thin_of(members)],
            [m.linear for m in members],
        )  # fmt: skip
    for act in ("silu", "gelu", "gelu_tanh")[some]:
        x = on.drawn(70, 130, dtype=dtype).requires_grad_()
        hidden, out = (
            [on.adapted(130, 257, 8, dtype) for _ in range(2)],
            on.adapted(257, 130, 8, dtype),
        )
        found[f"mlp {act}"] = (
            lambda x=x, h=hidden, o=out, a=act: [mlp(x, h, o, ACTIVATIONS[a])],
            [x, *thin_of([*hidden, out])], [m.linear for m in (*hidden, out)],
        )  # fmt: skip
    for H, K, window in ((4, 4, None), (9, 3, None), (8, 2, 17))[some]:
        found[f"{TEXTS} {H, K, window}"] = texts_case(on, dtype, H, K, window)
    return found


TEXTS = "attention over texts"


def texts_case(
    on: On, dtype: torch.dtype, H: int, K: int, window: int | None, E: int = 64
) -> tuple[Run, list[Tensor], list[nn.Module]]:
    """A row of fixed shape, one of its texts of a single position, places for two unused."""
    ends = (0, 40, 41, 170, 300, 300, 300) if on.device == "cuda" else (0, 4, 5, 9, 9, 9)
    T = ends[-1]
    sizes = torch.tensor(ends).diff()
    segments = torch.arange(len(sizes)).repeat_interleave(sizes)[None].to(on.device)
    texts = PackedSequences(
        segments,
        torch.tensor(ends, dtype=torch.int32, device=on.device),
        int(sizes.max()),
        window,
    )
    mask = dense_mask(None, segments, T, 0, 0, True, window, torch.device(on.device))
    told = None if on.device != "cuda" or not suits(dtype, torch.device(on.device), E) else texts
    q, k, v = (
        on.drawn(1, T, n, E, dtype=dtype).transpose(1, 2).requires_grad_() for n in (H, K, K)
    )

    def run() -> Sequence[Tensor]:
        by = told if choice.fused() else None
        return [attention.attend(q, k, v, mask, False, packed=by)]

    return run, [q, k, v], []


def checks(on: On, ours: str, late: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """The largest relative error of each case, ours and that of torch's fused form.

    When `late` says so, those that are left are listed instead.
    """
    out: dict[str, Any] = {"failed": [], "left out: no time": []}

    def judged(name: str, measure: Callable[[], Any], good: Callable[[Any], bool]) -> None:
        if late():
            out["left out: no time"].append(name)
            return
        try:
            found = measure()
            passed = good(found)
        except Exception as error:  # on a GPU anything may come; the next check may still tell
            found, passed = said(error), False
        out[name] = found
        if not passed:
            out["failed"].append(f"{name}: {found}")
        print(f"    {name}: {found}", flush=True)

    for dtype in LIMITS:
        if on.device != "cuda" and dtype == torch.bfloat16:
            continue  # the interpreter multiplies its bits as whole numbers
        word = str(dtype).removeprefix("torch.")
        judged(
            f"{word} fit captured",
            lambda d=dtype: captured_apart(on, ours, d),
            lambda apart, d=dtype: apart < CURVES[d],
        )
        judged(
            f"{word} dropout",
            lambda d=dtype: dropout(on, ours, d),
            lambda wrong, d=dtype: wrong < LIMITS[d],
        )
        for name, case in check_cases(on, dtype).items():
            judged(
                f"{word} {name}",
                lambda case=case: errors(*case, ours),
                lambda row, d=dtype, name=name: (
                    row["triton"] < LIMITS[d] and (row["repeats"] or TEXTS in name)
                ),
            )
    if on.device == "cuda":
        judged("dropout drawn anew by a graph", lambda: drawn_anew(on, ours), bool)
    return out


def said(error: Exception) -> str:
    """Its kind and what it says, as a result file keeps it."""
    return f"{type(error).__name__}: {str(error)[:300]}"


def errors(run: Run, wanted: list[Tensor], modules: list[nn.Module], ours: str) -> dict[str, Any]:
    """Of each form, and whether ours gives the same bits again."""
    exact, row = exactly(run, wanted, modules), {}
    for form, kernels in (("torch", "torch"), ("triton", ours)):
        with using(kernels):
            found, again = both(run, wanted), both(run, wanted)
        row[form] = max(
            float((a.double() - e.double()).norm() / e.double().norm().clamp(min=1e-30))
            for a, e in zip(found, exact, strict=True)
        )
    same = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    return row | {"repeats": same}


def drawn_anew(on: On, ours: str) -> bool:
    """Whether two replays of one graph keep other inputs."""
    x, members = on.drawn(64, 128), [on.adapted(128, 64, 8, torch.float32, 0.5)]
    with using(ours), torch.no_grad():
        replay = recorded(
            lambda: adapted_linears(x, members)[0], lambda: adapted_linears(x, members)
        )
        first = replay().clone()
        return not torch.equal(first, replay())


class Ids(SFT):
    """An SFT whose rows are ids already."""

    def __init__(self, train: list[Any], held_out: list[Any]):
        self.train, self.held_out, self.pack = train, held_out, "auto"
        self.tokenizer, self.window = None, Window(self.encode)  # type: ignore[assignment]
        self.chunks = {False: Chunks(len(train), {})}

    def check(self, model: Transformer) -> None:
        pass

    def encode(self, i: int, held_out: bool = False) -> tuple[list[int], list[int]]:
        return (self.held_out if held_out else self.train)[i]  # type: ignore[return-value]

    def held_out_batches(self, max_tokens: int) -> Iterator[Batch]:
        yield from token_batches(self.held_out, max_tokens)  # type: ignore[arg-type]

    def summary(self) -> dict[str, object]:
        return {}


def captured_apart(on: On, ours: str, dtype: torch.dtype) -> float:
    """The largest relative difference of a loss, a norm or a held-out loss between both loops."""
    shape = ModelConfig(family="llama", vocab=500, dim=64, layers=2, heads=4, kv_heads=2,
                        head_dim=16, ff=96, context=512)  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 300 if on.device == "cuda" else 20, (40,), generator=generator)
    rows = [
        (
            torch.randint(500, (n,), generator=generator).tolist(),
            [0] * (n // 3) + [1] * (n - n // 3),
        )
        for n in lengths.tolist()
    ]
    runs = []
    for graph in ("off", "on"):
        torch.manual_seed(0)
        with torch.device(on.device):
            model = Transformer(shape)
            for p in model.parameters():
                if p.dim() == 2:
                    nn.init.normal_(p, std=0.1)
        attach(model.to(dtype), LoRA(rank=4))
        config = TrainConfig(
            steps=12 if on.device == "cuda" else 3, batch_size=8, lr=2e-3,
            micro_batch_tokens=600, clip=0.5, eval_every=5, kernels=ours, graph=graph, threads=1,
        )  # fmt: skip
        runs.append(fit(model, Ids(rows[8:], rows[:8]), config))
    pairs = [
        *zip(runs[0].losses, runs[1].losses, strict=True),
        *zip(runs[0].norms, runs[1].norms, strict=True),
        *((a[1], b[1]) for a, b in zip(runs[0].evaluations, runs[1].evaluations, strict=True)),
    ]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def dropout(
    on: On, ours: str, dtype: torch.dtype, N: int = 70, width: int = 130, drop: float = 0.25
) -> float:
    """The group with dropout beside explicit products with the mask, read off the kernel itself."""
    from minift.kernels.lora import triton

    x, members = (
        on.drawn(N, width, dtype=dtype).requires_grad_(),
        [on.adapted(width, 70, 8, dtype, drop)],
    )
    (one,) = members
    wanted = [x, *thin_of(members)]
    assert one.A is not None
    assert one.B is not None
    with using(ours):
        torch.manual_seed(1)
        found = both(lambda: adapted_linears(x, members), wanted)
        torch.manual_seed(1)
        seed = triton.seed_on(x.device, 0)
        eye = torch.eye(width, device=on.device)
        plan = triton.Plan((one.linear,), (width,), (1.0,), drop, seed)
        mask = triton.low(torch.ones_like(x), plan, [eye, eye]).double()
    kept = float(mask.mean())
    if abs(kept - (1 - drop)) > 6 * (drop * (1 - drop) / mask.numel()) ** 0.5:
        return float("inf")

    def plain() -> list[Tensor]:
        wide, A, B = x.double(), one.A.double(), one.B.double()
        y = wide @ one.linear.weight.double().T
        return [y + one.scale / (1 - drop) * ((wide * mask) @ A.T) @ B.T]

    exact = both(plain, wanted)
    return max(
        float((a.double() - e.double()).norm() / e.double().norm())
        for a, e in zip(found, exact, strict=True)
    )
