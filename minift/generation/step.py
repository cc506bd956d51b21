"""One more token of every row, without the modules: for models in which only products are changed.

    x = x + W_o attention(W_qkv norm(x))        x = x + W_down act(W_hidden norm(x))

The same operations in the same order as the forward pass (model/transformer.py, the readable twin),
so the bits are the same. What is left out is what the forward pass asks on its way: nine module
calls a layer, with their hooks, and the seams where methods change it. For one row of SmolLM2 that
is a fifth of a token's time on int8 weights.

It is for layers with a norm before each sublayer and no window, on a CPU. Whatever else hangs on
the model, a hook or a method that changes more than products, is left to the forward pass; so LoRA
comes this way, a prefix does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from minift.generation.cache import KVCache
from minift.generation.prepared import Group, Outputs
from minift.kernels.attention.dispatch import attend
from minift.kernels.lora.reference import hooks_of, watched
from minift.kernels.rope import fused
from minift.kernels.rope.dispatch import rotate_both
from minift.model.norm import LayerNorm, RMSNorm
from minift.model.transformer import MLP, Attention, Block, Projections, Transformer

PLAIN = (Transformer, Block, Attention, MLP, LayerNorm, RMSNorm)  # what is passed by
Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """What of a layer is called, past its modules."""

    attn_norm: Rows
    qkv: Outputs
    q_norm: Rows | None
    k_norm: Rows | None
    o: Outputs
    mlp_norm: Rows
    hidden: Outputs
    act: Rows
    down: Outputs


def step_of(model: Transformer) -> Step | None:
    """For a prepared model that has read its prompt; None where the forward pass is needed."""
    config = model.config
    if config.norm_at != "pre" or any(config.local) or model.embed.weight.device.type != "cpu":
        return None
    passed = [m for m in model.modules() if isinstance(m, (*PLAIN, Projections, nn.ModuleList))]
    if any("forward" in vars(m) or (watched(m) and not idle(m)) for m in passed):
        return None
    layers = [layer_of(block) for block in model.blocks]
    found = [layer for layer in layers if layer is not None]
    return Step(model, found) if len(found) == len(layers) else None


def idle(module: nn.Module) -> bool:
    """Whether nothing hangs on it but its adapters' own hooks, which have nothing to add now."""
    adapters = getattr(module, "adapters", None)
    return getattr(adapters, "idle", False) and all(
        getattr(hook, "__self__", None) is adapters for hook in hooks_of(module)
    )


def layer_of(block: nn.Module) -> Layer | None:
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not MLP:
        return None
    attn, mlp = block.attn, block.mlp
    if attn.change is not None or mlp.change is not None:
        return None
    qkv, o, hidden, down = (made(g) for g in (attn.qkv, attn.out, mlp.hidden, mlp.out))
    if qkv is None or o is None or hidden is None or down is None:
        return None
    q_norm, k_norm = (None if n is None else n.forward for n in (attn.q_norm, attn.k_norm))
    act = mlp.act.forward
    norms = attn.norm.forward, mlp.norm.forward
    return Layer(norms[0], qkv, q_norm, k_norm, o, norms[1], hidden, act, down)


def made(group: Projections) -> Outputs | None:
    return group.together.outputs if isinstance(group.together, Group) else None


class Step:
    """What `model(tokens, cache=cache, hidden_only=True)` gives for one token of every row."""

    def __init__(self, model: Transformer, layers: list[Layer]):
        self.model, self.layers = model, layers

    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B, 1) -> (B, 1, D)."""
        model, (B, _) = self.model, tokens.shape
        attn = model.blocks[0].attn
        assert isinstance(attn, Attention)
        E, scale, cap = attn.head_dim, attn.scale, attn.cap
        x = model.embed_tokens(tokens)  # (B, 1, D)
        positions, shared = model.share(x, None, None, None, None, cache)
        x = model.place(x, positions, None, shared.last)
        rotary, visible = shared.whole.rotary, shared.whole.sights[0].visible
        turn: Callable[..., tuple[Tensor, Tensor]] = rotate_both
        if rotary is not None and 2 * rotary[0].shape[-1] == E:
            turn, rotary = fused.turn_widened, fused.widened(*rotary)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.qkv(layer.attn_norm(x))
            q = q.view(B, -1, 1, E)  # (B, H, 1, E)
            k, v = k.view(B, -1, 1, E), v.view(B, -1, 1, E)  # (B, K, 1, E)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = layer.q_norm(q), layer.k_norm(k)
            if rotary is not None:
                q, k = turn(q, k, *rotary)
            k, v = cache.write(i, k, v)  # (B, K, S, E)
            y = attend(q.to(k.dtype), k, v, visible, False, scale, cap)  # (B, H, 1, E)
            x = x + layer.o(y.view(B, 1, -1).to(x.dtype))[0]
            first, *gated = layer.hidden(layer.mlp_norm(x))
            h = layer.act(first)
            x = x + layer.down(h * gated[0] if gated else h)[0]
        cache.advance(1)
        return x if model.norm is None else model.norm(x)
