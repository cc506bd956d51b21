"""The model families: for each, what is fixed, which fields vary, and where each tensor is.

A family with the transformer's fields is a few rows here; nothing below is code. Keyed by
config.json's `model_type` and GGUF's `general.architecture`, never by the name of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minift.checkpoints.mapping import (
    REQUIRED,
    Family,
    Field,
    Layout,
    Row,
    Values,
    build,
    check_fixed,
    flags,
    read_fields,
)
from minift.checkpoints.parts import (
    GEMMA,
    GEMMA_1,
    GGUF_GEMMA,
    GGUF_NEOX,
    LABELS,
    NEOX,
    ROBERTA,
    every_layer,
    every_other,
    five_of_six,
    gguf_windows,
    upper_layers,
    windows,
)
from minift.checkpoints.rope_parts import GGUF_ROPE, PARTIAL_ROPE, TWO_ROPES, rope
from minift.errors import FormatError
from minift.model.config import ModelConfig

# Every name that a family was published with and the functions that it means, as transformers'
# ACT2FN has them; what is written is the first name of a function.
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu"}
ACTIVATIONS |= {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS |= {"gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh"}
ACTIVATIONS |= {"gelu_python_tanh": "gelu_tanh", "relu": "relu"}
GEMMA_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", **ACTIVATIONS}


def heads(values: Values) -> object:
    return values["heads"]


def only(fields: tuple[Field, ...], *names: str) -> tuple[Field, ...]:
    """The fields of these names of ours, in the table's order."""
    found = tuple(row for row in fields if row.ours in names)
    assert {row.ours for row in found} == {*names}, f"no such fields: {names}"
    return found


def without(fields: tuple[Field, ...], *names: str) -> tuple[Field, ...]:
    return only(fields, *{row.ours for row in fields} - {*names})


def head_dim(values: Values) -> object:
    return values["dim"] // max(1, values["heads"])


def both(theirs: str, ours: str, transform: str = "=", when: str = "") -> tuple[Row, Row]:
    """A weight and its bias."""
    of_bias = {"transpose": "=", "q|k|v transpose": "q|k|v"}.get(transform, transform)  # one column
    return (
        Row(f"{theirs}.weight", f"{ours}.weight", transform, when),
        Row(f"{theirs}.bias", f"{ours}.bias", of_bias, when),
    )


# ---- Llama and those built like it ---------------------------------------------------------------

# Defaults, here and below, are those of the family's class in transformers.
LLAMA_FIELDS = (
    Field("vocab_size", "vocab", int, 32_000, null=REQUIRED),
    Field("hidden_size", "dim", int, 4096, null=REQUIRED),
    Field("num_hidden_layers", "layers", int, 32, null=REQUIRED),
    Field("num_attention_heads", "heads", int, 32, null=REQUIRED),
    Field("num_key_value_heads", "kv_heads", int, heads, null=heads),
    Field("head_dim", "head_dim", int, head_dim, null=head_dim),
    Field("intermediate_size", "ff", int, 11_008, null=REQUIRED),
    Field("max_position_embeddings", "context", int, 2048),
    Field("rms_norm_eps", "norm_eps", float, 1e-6),
    Field("hidden_act", "act", str, "silu", ACTIVATIONS),
    Field("tie_word_embeddings", "tied", bool, False),
)
LLAMA_BODY_FIELDS = without(LLAMA_FIELDS, "act", "tied")
BODY_SIZES = only(LLAMA_FIELDS, "vocab", "dim", "layers", "heads")
LLAMA_BIAS_FIELDS = (
    Field("attention_bias", "qkv_bias", bool, False),
    Field("attention_bias", "out_bias", bool, False),
    Field("mlp_bias", "mlp_bias", bool, False),
)
LLAMA_BODY = (
    Row("{p}embed_tokens.weight", "embed.weight"),
    Row("{p}layers.{i}.input_layernorm.weight", "blocks.{i}.attn.norm.weight"),
    Row("{p}layers.{i}.self_attn.q_proj.weight", "blocks.{i}.attn.qkv.q.weight"),
    Row("{p}layers.{i}.self_attn.k_proj.weight", "blocks.{i}.attn.qkv.k.weight"),
    Row("{p}layers.{i}.self_attn.v_proj.weight", "blocks.{i}.attn.qkv.v.weight"),
    Row("{p}layers.{i}.self_attn.o_proj.weight", "blocks.{i}.attn.out.o.weight"),
    Row("{p}layers.{i}.mlp.gate_proj.weight", "blocks.{i}.mlp.hidden.gate.weight"),
    Row("{p}layers.{i}.mlp.up_proj.weight", "blocks.{i}.mlp.hidden.up.weight"),
    Row("{p}layers.{i}.mlp.down_proj.weight", "blocks.{i}.mlp.out.down.weight"),
    Row("{p}layers.{i}.self_attn.q_proj.bias", "blocks.{i}.attn.qkv.q.bias", when="qkv_bias"),
    Row("{p}layers.{i}.self_attn.k_proj.bias", "blocks.{i}.attn.qkv.k.bias", when="qkv_bias"),
    Row("{p}layers.{i}.self_attn.v_proj.bias", "blocks.{i}.attn.qkv.v.bias", when="qkv_bias"),
    Row("{p}layers.{i}.self_attn.o_proj.bias", "blocks.{i}.attn.out.o.bias", when="out_bias"),
    Row("{p}layers.{i}.mlp.gate_proj.bias", "blocks.{i}.mlp.hidden.gate.bias", when="mlp_bias"),
    Row("{p}layers.{i}.mlp.up_proj.bias", "blocks.{i}.mlp.hidden.up.bias", when="mlp_bias"),
    Row("{p}layers.{i}.mlp.down_proj.bias", "blocks.{i}.mlp.out.down.bias", when="mlp_bias"),
    Row("{p}layers.{i}.self_attn.q_norm.weight", "blocks.{i}.attn.q_norm.weight", when="qk_norm"),
    Row("{p}layers.{i}.self_attn.k_norm.weight", "blocks.{i}.attn.k_norm.weight", when="qk_norm"),
    Row("{p}norm.weight", "norm.weight"),
)
SCORE = Row("score.weight", "head.out.weight", when="head=label")
DECODER_HEADS = (Row("lm_head.weight", "head.weight", when="head=lm !tied"), SCORE)
MLP_NORM = "{p}layers.{i}.post_attention_layernorm.weight"
LLAMA_WEIGHTS = (*LLAMA_BODY, Row(MLP_NORM, "blocks.{i}.mlp.norm.weight"), *DECODER_HEADS)
TIED_COPY = {"lm_head.weight": "{p}embed_tokens.weight"}
BUFFERS = (r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)",)
DECODER_IGNORED = {
    "language head": r"lm_head\.weight",
    "classifier": r"(score|classifier)\.(weight|bias)",
    "question-answering head": r"qa_outputs\.(weight|bias)",
    "value head": r"v_head\..+",  # of TRL's PPO
}

LLAMA_GGUF_FIELDS = (
    Field("vocab_size", "vocab", int),
    Field("embedding_length", "dim", int),
    Field("block_count", "layers", int),
    Field("attention.head_count", "heads", int),
    Field("attention.head_count_kv", "kv_heads", int, heads),
    Field("attention.key_length", "head_dim", int, head_dim),
    Field("feed_forward_length", "ff", int),
    Field("context_length", "context", int),
    Field("attention.layer_norm_rms_epsilon", "norm_eps", float),
    Field("rope.freq_base", "rope_base", float, 10_000.0),
)
GGUF_BODY = (
    Row("token_embd.weight", "embed.weight"),
    Row("blk.{i}.attn_norm.weight", "blocks.{i}.attn.norm.weight"),
    Row("blk.{i}.attn_q.weight", "blocks.{i}.attn.qkv.q.weight"),
    Row("blk.{i}.attn_k.weight", "blocks.{i}.attn.qkv.k.weight"),
    Row("blk.{i}.attn_v.weight", "blocks.{i}.attn.qkv.v.weight"),
    Row("blk.{i}.attn_output.weight", "blocks.{i}.attn.out.o.weight"),
    Row("blk.{i}.ffn_norm.weight", "blocks.{i}.mlp.norm.weight"),
    Row("blk.{i}.ffn_gate.weight", "blocks.{i}.mlp.hidden.gate.weight"),
    Row("blk.{i}.ffn_up.weight", "blocks.{i}.mlp.hidden.up.weight"),
    Row("blk.{i}.ffn_down.weight", "blocks.{i}.mlp.out.down.weight"),
    Row("blk.{i}.attn_q.bias", "blocks.{i}.attn.qkv.q.bias", when="qkv_bias"),
    Row("blk.{i}.attn_k.bias", "blocks.{i}.attn.qkv.k.bias", when="qkv_bias"),
    Row("blk.{i}.attn_v.bias", "blocks.{i}.attn.qkv.v.bias", when="qkv_bias"),
    Row("blk.{i}.attn_output.bias", "blocks.{i}.attn.out.o.bias", when="out_bias"),
    Row("blk.{i}.ffn_gate.bias", "blocks.{i}.mlp.hidden.gate.bias", when="mlp_bias"),
    Row("blk.{i}.ffn_up.bias", "blocks.{i}.mlp.hidden.up.bias", when="mlp_bias"),
    Row("blk.{i}.ffn_down.bias", "blocks.{i}.mlp.out.down.bias", when="mlp_bias"),
    Row("blk.{i}.attn_q_norm.weight", "blocks.{i}.attn.q_norm.weight", when="qk_norm"),
    Row("blk.{i}.attn_k_norm.weight", "blocks.{i}.attn.k_norm.weight", when="qk_norm"),
    Row("output_norm.weight", "norm.weight"),
    Row("output.weight", "head.weight", when="!tied"),
)


def in_pairs(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows of the architecture `llama`, whose q and k are stored pair by pair."""
    transform = {"attn_q": "q unpermute", "attn_k": "k unpermute"}
    return tuple(
        replace(row, transform=transform.get(row.theirs.split(".")[-2], row.transform))
        for row in rows
    )


def norms_plus_one(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(
        replace(row, transform="minus_one") if "norm" in row.theirs else row for row in rows
    )


GGUF_PRESENT = {
    "qkv_bias": ("blk.0.attn_q.bias",),
    "out_bias": ("blk.0.attn_output.bias",),
    "mlp_bias": ("blk.0.ffn_up.bias",),
}
LLAMA_GGUF = Layout(
    fields=LLAMA_GGUF_FIELDS,
    weights=in_pairs(GGUF_BODY),
    parts=(GGUF_ROPE,),
    must_be={"expert_count": 0, "attention.sliding_window": None, "attention.causal": True},
    present=GGUF_PRESENT,
    buffers=(r"rope_freqs\.weight",),  # read with the configuration
)
PLAIN_GGUF = replace(LLAMA_GGUF, weights=GGUF_BODY)

LLAMA = Family(
    name="llama",
    heads={
        "LlamaForCausalLM": "lm",
        "LLaMAForCausalLM": "lm",  # the first converted files
        "LlamaForSequenceClassification": "label",
        "LlamaModel": "none",
        "LLaMAModel": "none",
    },
    bodies=("LlamaForTokenClassification", "LlamaForQuestionAnswering"),
    fixed={},
    folder=Layout(
        fields=LLAMA_FIELDS + LLAMA_BIAS_FIELDS,
        weights=LLAMA_WEIGHTS,
        parts=(rope(10_000.0), LABELS),
        tied_copies=TIED_COPY,
        renames={r"^transformer\.": "model."},  # as the class for question answering has it
        buffers=BUFFERS,
        ignored=DECODER_IGNORED,
    ),
    gguf_name="llama",
    gguf=LLAMA_GGUF,
)


def like_llama(
    name: str, architecture: str, fixed: Mapping[str, object], folder: Layout, **changes: Any
) -> Family:
    classes = {"ForCausalLM": "lm", "ForSequenceClassification": "label", "Model": "none"}
    heads = {architecture + suffix: head for suffix, head in classes.items()}
    bodies = (f"{architecture}ForTokenClassification", f"{architecture}ForQuestionAnswering")
    values: dict[str, Any] = {"heads": heads, "bodies": bodies, "fixed": fixed, "folder": folder}
    return replace(LLAMA, name=name, **(values | changes))


def other(fields: tuple[Field, ...], **values: object) -> tuple[Field, ...]:
    """The same fields with other defaults."""
    return tuple(
        replace(row, default=values[row.ours]) if row.ours in values else row for row in fields
    )


MISTRAL = like_llama(
    "mistral",
    "Mistral",
    {},
    replace(
        LLAMA.folder,
        fields=other(LLAMA_FIELDS, ff=14_336, context=131_072, kv_heads=8),
        parts=(rope(10_000.0), windows(every_layer, types=False), LABELS),
    ),
)
QWEN_FIELDS = other(LLAMA_FIELDS, vocab=151_936, ff=22_016, context=32_768, kv_heads=32)
QWEN2 = like_llama(
    "qwen2",
    "Qwen2",
    {"qkv_bias": True},
    replace(
        LLAMA.folder,
        fields=QWEN_FIELDS,
        parts=(rope(10_000.0), windows(upper_layers, "use_sliding_window"), LABELS),
    ),
    gguf_name="qwen2",
    gguf=PLAIN_GGUF,
)
QWEN3 = like_llama(
    "qwen3",
    "Qwen3",
    {"qk_norm": True},
    replace(
        LLAMA.folder,
        fields=other(QWEN_FIELDS, head_dim=128) + only(LLAMA_BIAS_FIELDS, "qkv_bias", "out_bias"),
        parts=(rope(10_000.0), windows(upper_layers, "use_sliding_window"), LABELS),
    ),
    gguf_name="qwen3",
    gguf=PLAIN_GGUF,
    gguf_fixed={"qk_norm": True},
)

# ---- Gemma ---------------------------------------------------------------------------------------

GEMMA_FIXED = {"act": "gelu_tanh", "norm_offset": 1.0}
GEMMA_FIELDS = (
    *other(LLAMA_BODY_FIELDS, vocab=256_000, ff=9216, context=8192, head_dim=256, dim=2304),
    Field("tie_word_embeddings", "tied", bool, True),
    *only(LLAMA_BIAS_FIELDS, "qkv_bias", "out_bias"),
)
GEMMA_2_FIELDS = (
    *other(GEMMA_FIELDS, layers=26, heads=8, kv_heads=4),
    Field("hidden_activation", "act", str, "gelu_tanh", GEMMA_ACTIVATIONS),
    Field("final_logit_softcapping", "logit_softcap", float, 30.0, null=None),
    Field("attn_logit_softcapping", "attention_softcap", float, 50.0, null=None),
)
SANDWICH = (
    Row(MLP_NORM, "blocks.{i}.attn.after.weight"),
    Row("{p}layers.{i}.pre_feedforward_layernorm.weight", "blocks.{i}.mlp.norm.weight"),
    Row("{p}layers.{i}.post_feedforward_layernorm.weight", "blocks.{i}.mlp.after.weight"),
)
GGUF_SANDWICH = (
    Row("blk.{i}.post_attention_norm.weight", "blocks.{i}.attn.after.weight"),
    Row("blk.{i}.post_ffw_norm.weight", "blocks.{i}.mlp.after.weight"),
)
GEMMA_GGUF = replace(
    PLAIN_GGUF,
    weights=norms_plus_one(GGUF_BODY),
    parts=(GGUF_ROPE, GGUF_GEMMA),
    must_be={"expert_count": 0, "attention.causal": True},
)
GEMMA1 = like_llama(
    "gemma",
    "Gemma",
    {"act": "gelu_tanh", "norm_offset": 1.0},
    replace(
        LLAMA.folder,
        fields=(
            *other(GEMMA_FIELDS, dim=3072, ff=24_576, layers=28, heads=16, kv_heads=16),
            # The first files say gelu and mean, as transformers has it, the approximation.
            Field("hidden_act", "act", str, "gelu_tanh", GEMMA_ACTIVATIONS | {"gelu": "gelu_tanh"}),
        ),
        parts=(rope(10_000.0), GEMMA_1, LABELS),
        must_be={"use_bidirectional_attention": False},
    ),
    gguf_name="gemma",
    gguf=GEMMA_GGUF,
    gguf_fixed=GEMMA_FIXED,
)
GEMMA_2_3 = replace(
    GEMMA1.folder,
    fields=GEMMA_2_FIELDS,
    weights=(*LLAMA_BODY, *SANDWICH, *DECODER_HEADS),
)
GEMMA2 = like_llama(
    "gemma2",
    "Gemma2",
    {**GEMMA_FIXED, "norm_at": "sandwich"},
    replace(GEMMA_2_3, parts=(rope(10_000.0), windows(every_other), GEMMA, LABELS)),
    gguf_name="gemma2",
    gguf=replace(
        GEMMA_GGUF,
        fields=(
            *LLAMA_GGUF_FIELDS,
            Field("attn_logit_softcapping", "attention_softcap", float, 50.0),
            Field("final_logit_softcapping", "logit_softcap", float, 30.0),
        ),
        weights=norms_plus_one(GGUF_BODY + GGUF_SANDWICH),
        parts=(GGUF_ROPE, gguf_windows(every_other, 4096), GGUF_GEMMA),
    ),
    gguf_fixed={**GEMMA_FIXED, "norm_at": "sandwich"},
)
GEMMA3 = like_llama(
    "gemma3_text",
    "Gemma3",
    {**GEMMA_FIXED, "norm_at": "sandwich", "qk_norm": True},
    replace(
        GEMMA_2_3,
        fields=other(
            GEMMA_2_FIELDS,
            vocab=262_208,
            context=131_072,
            logit_softcap=None,
            attention_softcap=None,
        ),
        parts=(TWO_ROPES, windows(five_of_six), GEMMA, LABELS),
        renames={
            r"^(model\.)?language_model\.lm_head\.": "lm_head.",
            r"^(model\.)?language_model\.(model\.)?": "model.",
        },
        ignored={
            "vision tower": r"(model\.)?vision_tower\..+",
            "image projector": r"(model\.)?multi_modal_projector\..+",
            **DECODER_IGNORED,
        },
    ),
    heads={
        "Gemma3ForCausalLM": "lm",
        "Gemma3ForConditionalGeneration": "lm",
        "Gemma3TextForSequenceClassification": "label",
        "Gemma3ForSequenceClassification": "label",
        "Gemma3TextModel": "none",
        "Gemma3Model": "none",
    },
    bodies=(),
    within={"gemma3": "text_config"},
    gguf_name="gemma3",
    gguf=replace(
        GEMMA_GGUF,
        fields=(
            *other(LLAMA_GGUF_FIELDS, rope_base=1e6),
            Field("rope.freq_base_swa", "local_rope_base", float, 10_000.0),
        ),
        weights=norms_plus_one(GGUF_BODY + GGUF_SANDWICH),
        parts=(GGUF_ROPE, gguf_windows(five_of_six), GGUF_GEMMA),
        must_be={**GEMMA_GGUF.must_be, "final_logit_softcapping": 0.0},
    ),
    gguf_fixed={**GEMMA_FIXED, "norm_at": "sandwich", "qk_norm": True},
)

# ---- GPT-2 and GPT-NeoX --------------------------------------------------------------------------

LAYER_NORM = {"norm": "layer", "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True}
GPT2_GGUF = Layout(
    fields=(
        *only(LLAMA_GGUF_FIELDS, "vocab", "dim", "layers", "heads"),
        Field("attention.head_count", "kv_heads", int),
        *only(LLAMA_GGUF_FIELDS, "head_dim", "ff", "context"),
        Field("attention.layer_norm_epsilon", "norm_eps", float),
    ),
    weights=(
        Row("token_embd.weight", "embed.weight"),
        Row("position_embd.weight", "places.weight"),
        *both("blk.{i}.attn_norm", "blocks.{i}.attn.norm"),
        *both("blk.{i}.attn_qkv", "blocks.{i}.attn.qkv.{q,k,v}", "q|k|v"),
        *both("blk.{i}.attn_output", "blocks.{i}.attn.out.o"),
        *both("blk.{i}.ffn_norm", "blocks.{i}.mlp.norm"),
        *both("blk.{i}.ffn_up", "blocks.{i}.mlp.hidden.up"),
        *both("blk.{i}.ffn_down", "blocks.{i}.mlp.out.down"),
        *both("output_norm", "norm"),
        Row("output.weight", "head.weight", when="!tied"),
    ),
)
GPT2 = Family(
    name="gpt2",
    heads={
        "GPT2LMHeadModel": "lm",
        "GPT2DoubleHeadsModel": "lm",
        "GPT2ForSequenceClassification": "label",
        "GPT2Model": "none",
    },
    fixed={**LAYER_NORM, "positions": "learned"},
    bodies=("GPT2ForTokenClassification", "GPT2ForQuestionAnswering"),
    prefix="transformer.",
    folder=Layout(
        fields=(
            Field("vocab_size", "vocab", int, 50_257, null=REQUIRED),
            Field("n_embd", "dim", int, 768, null=REQUIRED),
            Field("n_layer", "layers", int, 12, null=REQUIRED),
            Field("n_head", "heads", int, 12, null=REQUIRED),
            Field("n_head", "kv_heads", int, 12),
            Field("n_embd / n_head", "head_dim", int, head_dim),
            Field("n_inner", "ff", int, lambda values: 4 * values["dim"]),
            Field("n_positions", "context", int, 1024),
            Field("layer_norm_epsilon", "norm_eps", float, 1e-5),
            Field("activation_function", "act", str, "gelu_tanh", ACTIVATIONS),
            Field("tie_word_embeddings", "tied", bool, True),
        ),
        weights=(
            Row("{p}wte.weight", "embed.weight"),
            Row("{p}wpe.weight", "places.weight"),
            *both("{p}h.{i}.ln_1", "blocks.{i}.attn.norm"),
            *both("{p}h.{i}.attn.c_attn", "blocks.{i}.attn.qkv.{q,k,v}", "q|k|v transpose"),
            *both("{p}h.{i}.attn.c_proj", "blocks.{i}.attn.out.o", "transpose"),
            *both("{p}h.{i}.ln_2", "blocks.{i}.mlp.norm"),
            *both("{p}h.{i}.mlp.c_fc", "blocks.{i}.mlp.hidden.up", "transpose"),
            *both("{p}h.{i}.mlp.c_proj", "blocks.{i}.mlp.out.down", "transpose"),
            *both("{p}ln_f", "norm"),
            *DECODER_HEADS,
        ),
        parts=(LABELS,),
        must_be={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        tied_copies={"lm_head.weight": "{p}wte.weight"},
        buffers=(r".*\.attn\.(masked_)?bias",),  # the triangle of the mask, in older files
        ignored={**DECODER_IGNORED, "multiple-choice head": r"multiple_choice_head\..+"},
    ),
    gguf_name="gpt2",
    gguf=GPT2_GGUF,
    gguf_fixed={**LAYER_NORM, "positions": "learned", "act": "gelu_tanh"},
)
NEOX_FIXED = {"norm": "layer", "gated": False, "mlp_bias": True}
NEOX_BODY = (
    *both("{p}layers.{i}.input_layernorm", "blocks.{i}.attn.norm"),
    *both("{p}layers.{i}.post_attention_layernorm", "blocks.{i}.mlp.norm"),
    *both("{p}layers.{i}.mlp.dense_h_to_4h", "blocks.{i}.mlp.hidden.up"),
    *both("{p}layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.mlp.out.down"),
)
NEOX_QKV = "{p}layers.{i}.attention.query_key_value", "blocks.{i}.attn.qkv.{q,k,v}"
NEOX_OUT = "{p}layers.{i}.attention.dense", "blocks.{i}.attn.out.o"
GPT_NEOX = Family(
    name="gpt_neox",
    heads={
        "GPTNeoXForCausalLM": "lm",
        "GPTNeoXForSequenceClassification": "label",
        "GPTNeoXModel": "none",
    },
    bodies=("GPTNeoXForTokenClassification", "GPTNeoXForQuestionAnswering"),
    fixed=NEOX_FIXED,
    prefix="gpt_neox.",
    folder=Layout(
        fields=(
            *other(BODY_SIZES, vocab=50_432, dim=6144, layers=44, heads=64),
            Field("num_attention_heads", "kv_heads", int, heads),
            Field("hidden_size / heads", "head_dim", int, head_dim),
            *other(only(LLAMA_FIELDS, "ff", "context"), ff=24_576),
            Field("layer_norm_eps", "norm_eps", float, 1e-5),
            Field("hidden_act", "act", str, "gelu", ACTIVATIONS),
            Field("attention_bias", "qkv_bias", bool, True),
            Field("attention_bias", "out_bias", bool, True),
            Field("tie_word_embeddings", "tied", bool, False),
        ),
        weights=(
            Row("{p}embed_in.weight", "embed.weight"),
            *NEOX_BODY,
            Row(f"{NEOX_QKV[0]}.weight", f"{NEOX_QKV[1]}.weight", "q|k|v per head"),
            Row(f"{NEOX_QKV[0]}.bias", f"{NEOX_QKV[1]}.bias", "q|k|v per head", "qkv_bias"),
            Row(f"{NEOX_OUT[0]}.weight", f"{NEOX_OUT[1]}.weight"),
            Row(f"{NEOX_OUT[0]}.bias", f"{NEOX_OUT[1]}.bias", when="out_bias"),
            *both("{p}final_layer_norm", "norm"),
            Row("embed_out.weight", "head.weight", when="head=lm !tied"),
            SCORE,
        ),
        parts=(PARTIAL_ROPE, NEOX, LABELS),
        tied_copies={"embed_out.weight": "{p}embed_in.weight"},
        renames={r"^lm_head\.": "embed_out."},
        buffers=(*BUFFERS, r".*\.attention\.(masked_)?bias"),
        ignored={**DECODER_IGNORED, "language head": r"embed_out\.weight"},
    ),
    gguf_name="gptneox",
    gguf=Layout(
        fields=(
            *GPT2_GGUF.fields,
            Field("rope.dimension_count", "rope_dims", int, None),
            Field("rope.freq_base", "rope_base", float, 10_000.0),
        ),
        weights=tuple(row for row in GPT2_GGUF.weights if row.ours != "places.weight"),
        parts=(GGUF_ROPE, GGUF_NEOX),
    ),
    gguf_fixed={**NEOX_FIXED, "act": "gelu", "qkv_bias": True, "out_bias": True},
)

# ---- encoders ------------------------------------------------------------------------------------

ENCODER = {
    **LAYER_NORM,
    "norm_at": "post",
    "final_norm": False,
    "causal": False,
    "positions": "learned",
    "embed_norm": True,
    "pool": "first",
    "label_bias": True,
}
BERT_FIELDS = (
    *other(BODY_SIZES, vocab=30_522, dim=768, layers=12, heads=12),
    Field("num_attention_heads", "kv_heads", int, heads),
    Field("hidden_size / heads", "head_dim", int, head_dim),
    *other(only(LLAMA_FIELDS, "ff"), ff=3072),
    Field("type_vocab_size", "token_types", int, 2),
    Field("layer_norm_eps", "norm_eps", float, 1e-12),
    Field("hidden_act", "act", str, "gelu", ACTIVATIONS),
    Field("tie_word_embeddings", "tied", bool, True),
)
BERT_BODY = (
    Row("{p}embeddings.word_embeddings.weight", "embed.weight"),
    Row("{p}embeddings.position_embeddings.weight", "places.weight"),
    Row("{p}embeddings.token_type_embeddings.weight", "types.weight", when="token_types"),
    *both("{p}embeddings.LayerNorm", "embed_norm"),
    *both("{p}encoder.layer.{i}.attention.self.query", "blocks.{i}.attn.qkv.q"),
    *both("{p}encoder.layer.{i}.attention.self.key", "blocks.{i}.attn.qkv.k"),
    *both("{p}encoder.layer.{i}.attention.self.value", "blocks.{i}.attn.qkv.v"),
    *both("{p}encoder.layer.{i}.attention.output.dense", "blocks.{i}.attn.out.o"),
    *both("{p}encoder.layer.{i}.attention.output.LayerNorm", "blocks.{i}.attn.norm"),
    *both("{p}encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.hidden.up"),
    *both("{p}encoder.layer.{i}.output.dense", "blocks.{i}.mlp.out.down"),
    *both("{p}encoder.layer.{i}.output.LayerNorm", "blocks.{i}.mlp.norm"),
)
BERT_MUST_BE = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
POSITION_IDS = (r"(.*\.)?embeddings\.(position_ids|token_type_ids)",)
LAYER_NORM_NAMES = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
TASK_HEADS = {
    "classifier": r"classifier\.((dense|out_proj)\.)?(weight|bias)",
    "question-answering head": r"qa_outputs\.(weight|bias)",
}
BERT = Family(
    name="bert",
    heads={
        "BertModel": "none",
        "BertForMaskedLM": "mlm",
        "BertForPreTraining": "mlm",
        "BertLMHeadModel": "mlm",
        "BertForSequenceClassification": "label",
    },
    bodies=(
        *("BertForTokenClassification", "BertForQuestionAnswering"),
        *("BertForMultipleChoice", "BertForNextSentencePrediction", "Contriever"),
    ),
    fixed=ENCODER,
    prefix="bert.",
    marks={"type_vocab_size": 2},  # without a prefix RoBERTa's names are the same
    folder=Layout(
        fields=(*BERT_FIELDS, Field("max_position_embeddings", "context", int, 512)),
        weights=(
            *BERT_BODY,
            *both("{p}pooler.dense", "pooler", when="pooler"),
            *both("cls.predictions.transform.dense", "head.dense", when="head=mlm"),
            *both("cls.predictions.transform.LayerNorm", "head.norm", when="head=mlm"),
            Row("cls.predictions.bias", "head.decoder.bias", when="head=mlm"),
            Row("cls.predictions.decoder.weight", "head.decoder.weight", when="head=mlm !tied"),
            *both("classifier", "head.out", when="head=label"),
        ),
        parts=(LABELS,),
        must_be=BERT_MUST_BE,
        present={"pooler": ("{p}pooler.dense.weight",)},
        tied_copies={
            "cls.predictions.decoder.weight": "{p}embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        renames=LAYER_NORM_NAMES,
        buffers=POSITION_IDS,
        ignored={
            "masked-word head": r"cls\.predictions\."
            r"(bias|decoder\.(weight|bias)|transform\.(dense|LayerNorm)\.(weight|bias))",
            "next-sentence head": r"cls\.seq_relationship\.(weight|bias)",
            "distillation layers": r"fit_denses?(\.\d+)?\.(weight|bias)",  # TinyBERT's
            **TASK_HEADS,
        },
    ),
)
ROBERTA_FAMILY = Family(
    name="roberta",
    heads={
        "RobertaModel": "none",
        "RobertaForMaskedLM": "mlm",
        "RobertaForCausalLM": "mlm",
        "RobertaForSequenceClassification": "label",
    },
    bodies=(
        *("RobertaForTokenClassification", "RobertaForQuestionAnswering"),
        "RobertaForMultipleChoice",
    ),
    fixed=ENCODER,
    prefix="roberta.",
    marks={"type_vocab_size": 1},
    folder=Layout(
        fields=(
            *other(BERT_FIELDS, vocab=50_265),
            Field("max_position_embeddings", "context", int, 512),
        ),
        weights=(
            *BERT_BODY,
            *both("{p}pooler.dense", "pooler", when="pooler !head=label"),
            *both("classifier.dense", "pooler", when="pooler head=label"),
            *both("classifier.out_proj", "head.out", when="head=label"),
            *both("lm_head.dense", "head.dense", when="head=mlm"),
            *both("lm_head.layer_norm", "head.norm", when="head=mlm"),
            Row("lm_head.bias", "head.decoder.bias", when="head=mlm"),
            Row("lm_head.decoder.weight", "head.decoder.weight", when="head=mlm !tied"),
        ),
        parts=(ROBERTA, LABELS),
        must_be=BERT_MUST_BE,
        present={
            "pooler": (
                *("{p}pooler.dense.weight head=none", "{p}pooler.dense.weight head=mlm"),
                "classifier.dense.weight head=label",
            )
        },
        tied_copies={
            "lm_head.decoder.weight": "{p}embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        renames=LAYER_NORM_NAMES,
        buffers=POSITION_IDS,
        ignored={
            "pooler": r"(roberta\.)?pooler\.dense\.(weight|bias)",  # from before it got its labels
            "masked-word head": r"lm_head\.(bias|(decoder|dense|layer_norm)\.(weight|bias))",
            **TASK_HEADS,
        },
    ),
)
DISTILBERT = Family(
    name="distilbert",
    heads={
        "DistilBertModel": "none",
        "DistilBertForMaskedLM": "mlm",
        "DistilBertForSequenceClassification": "label",
    },
    bodies=(
        *("DistilBertForTokenClassification", "DistilBertForQuestionAnswering"),
        "DistilBertForMultipleChoice",
    ),
    fixed={**ENCODER, "pool_act": "relu", "norm_eps": 1e-12},
    prefix="distilbert.",
    folder=Layout(
        fields=(
            Field("vocab_size", "vocab", int, 30_522, null=REQUIRED),
            Field("dim", "dim", int, 768, null=REQUIRED),
            Field("n_layers", "layers", int, 6, null=REQUIRED),
            Field("n_heads", "heads", int, 12, null=REQUIRED),
            Field("n_heads", "kv_heads", int, 12),
            Field("dim / n_heads", "head_dim", int, head_dim),
            Field("hidden_dim", "ff", int, 3072),
            Field("max_position_embeddings", "context", int, 512),
            Field("activation", "act", str, "gelu", ACTIVATIONS),
            Field("tie_word_embeddings", "tied", bool, True),
        ),
        weights=(
            Row("{p}embeddings.word_embeddings.weight", "embed.weight"),
            Row("{p}embeddings.position_embeddings.weight", "places.weight"),
            *both("{p}embeddings.LayerNorm", "embed_norm"),
            *both("{p}transformer.layer.{i}.attention.q_lin", "blocks.{i}.attn.qkv.q"),
            *both("{p}transformer.layer.{i}.attention.k_lin", "blocks.{i}.attn.qkv.k"),
            *both("{p}transformer.layer.{i}.attention.v_lin", "blocks.{i}.attn.qkv.v"),
            *both("{p}transformer.layer.{i}.attention.out_lin", "blocks.{i}.attn.out.o"),
            *both("{p}transformer.layer.{i}.sa_layer_norm", "blocks.{i}.attn.norm"),
            *both("{p}transformer.layer.{i}.ffn.lin1", "blocks.{i}.mlp.hidden.up"),
            *both("{p}transformer.layer.{i}.ffn.lin2", "blocks.{i}.mlp.out.down"),
            *both("{p}transformer.layer.{i}.output_layer_norm", "blocks.{i}.mlp.norm"),
            *both("vocab_transform", "head.dense", when="head=mlm"),
            *both("vocab_layer_norm", "head.norm", when="head=mlm"),
            Row("vocab_projector.bias", "head.decoder.bias", when="head=mlm"),
            Row("vocab_projector.weight", "head.decoder.weight", when="head=mlm !tied"),
            *both("pre_classifier", "pooler", when="pooler"),
            *both("classifier", "head.out", when="head=label"),
        ),
        parts=(LABELS,),
        present={"pooler": ("pre_classifier.weight head=label",)},
        tied_copies={"vocab_projector.weight": "{p}embeddings.word_embeddings.weight"},
        renames=LAYER_NORM_NAMES,
        buffers=POSITION_IDS,
        ignored={
            "masked-word head": r"vocab_(transform|layer_norm|projector)\.(weight|bias)",
            "pre-classifier": r"pre_classifier\.(weight|bias)",
            **TASK_HEADS,
        },
    ),
)

FAMILIES = {
    family.name: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA1, GEMMA2, GEMMA3, GPT2, GPT_NEOX),
        *(BERT, ROBERTA_FAMILY, DISTILBERT),
    )
}
# Mistral's files say llama, and are read as that: the same mathematics.
GGUF_FAMILIES = {f.gguf_name: f for f in reversed(FAMILIES.values()) if f.gguf_name}


# ---- which family a file is of -------------------------------------------------------------------


def family_of(name: object, known: Mapping[str, Family], path: str, where: str) -> Family:
    """The family that a file names, or the list of those that there are."""
    if not isinstance(name, str) or name not in known:
        allowed = f"a family that minift knows: {', '.join(known)}"
        raise FormatError(path, where, name or "nothing", allowed, "out-of-range")
    return known[name]


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], path: str,
    factors: tuple[float, ...] | None = None,
) -> ModelConfig:  # fmt: skip
    """ModelConfig from GGUF metadata; what GGUF leaves unsaid is read off the tensors present.

    `factors` are the numbers of the tensor rope_freqs.weight, where there is one.
    """
    where = "general.architecture"
    family = family_of(metadata.get(where), GGUF_FAMILIES, path, where)
    layout, prefix = family.gguf, f"{family.gguf_name}."
    assert layout is not None
    found = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    if "vocab_size" not in found and len(tensors.get("token_embd.weight", ())) == 2:
        found["vocab_size"] = tensors["token_embd.weight"][0]
    check_fixed(layout.must_be, found, path)
    values: Values = {"family": family.name, "head": "lm", **family.fixed, **family.gguf_fixed}
    values |= read_fields(layout.fields, found, path)
    turned = found.get("rope.dimension_count", values["head_dim"])
    if "rope_dims" not in values and turned != values["head_dim"]:
        allowed = f"the width of a head, {values['head_dim']}"
        raise FormatError(path, f"{prefix}rope.dimension_count", turned, allowed, "out-of-range")
    for key in ("value_length", "key_length_swa", "value_length_swa"):
        if (width := found.get(f"attention.{key}", values["head_dim"])) != values["head_dim"]:
            allowed = f"the width of a head, {values['head_dim']}"
            raise FormatError(path, f"{prefix}attention.{key}", width, allowed, "out-of-range")
    if factors is not None:
        found["rope_freqs.weight"] = factors
    for part in layout.parts:
        values |= part.read(found, values, path)
    values |= flags(layout, tensors, "lm")
    return build(values | {"tied": "output.weight" not in tensors}, path)
