"""The model families: for each, what is fixed, which fields vary, and where each tensor is.

A family with the transformer's fields is a few rows here; nothing below is code. Keyed by
config.json's `model_type` and GGUF's `general.architecture`, never by the name of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minift.checkpoints.mapping import (
    Family,
    Field,
    Layout,
    Row,
    Values,
    build,
    check_fixed,
    flags,
    read_fields,
    write_fields,
)
from minift.checkpoints.parts import (
    GEMMA,
    GGUF_GEMMA,
    GGUF_NEOX,
    GGUF_ROPE,
    LABELS,
    NEOX,
    PARTIAL_ROPE,
    ROBERTA,
    TWO_ROPES,
    every_layer,
    every_other,
    five_of_six,
    gguf_windows,
    rope,
    upper_layers,
    windows,
)
from minift.errors import FormatError
from minift.model.config import ModelConfig

SILU = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
GELU_TANH = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}  # Gemma means the latter too
GELU_NEW = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
GELU_NEW |= {"gelu": "gelu", "relu": "relu"}
GELU = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def heads(values: Values) -> object:
    return values["heads"]


def head_dim(values: Values) -> object:
    return values["dim"] // max(1, values["heads"])


def both(theirs: str, ours: str, how: str = "=", when: str = "") -> tuple[Row, Row]:
    """A weight and its bias."""
    turned = {"turned": "=", "q|k|v turned": "q|k|v"}.get(how, how)  # a bias has no columns
    return (
        Row(f"{theirs}.weight", f"{ours}.weight", how, when),
        Row(f"{theirs}.bias", f"{ours}.bias", turned, when),
    )


# ---- Llama and those built like it ---------------------------------------------------------------

LLAMA_FIELDS = (
    Field("vocab_size", "vocab", int),
    Field("hidden_size", "dim", int),
    Field("num_hidden_layers", "layers", int),
    Field("num_attention_heads", "heads", int),
    Field("num_key_value_heads", "kv_heads", int, heads),
    Field("head_dim", "head_dim", int, head_dim),
    Field("intermediate_size", "ff", int),
    Field("max_position_embeddings", "context", int, 2048),
    Field("rms_norm_eps", "norm_eps", float, 1e-6),
    Field("hidden_act", "act", str, "silu", SILU),
    Field("tie_word_embeddings", "tied", bool, False),
)
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
DECODER_HEADS = (
    Row("lm_head.weight", "head.weight", when="head=lm !tied"),
    Row("score.weight", "head.out.weight", when="head=label"),
)
MLP_NORM = "{p}layers.{i}.post_attention_layernorm.weight"
LLAMA_WEIGHTS = (*LLAMA_BODY, Row(MLP_NORM, "blocks.{i}.mlp.norm.weight"), *DECODER_HEADS)
TIED_COPY = {"lm_head.weight": "{p}embed_tokens.weight"}
BUFFERS = (r".*rotary_emb\.inv_freq",)

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
    how = {"attn_q": "q pairs", "attn_k": "k pairs"}
    return tuple(replace(row, how=how.get(row.theirs.split(".")[-2], row.how)) for row in rows)


def norms_plus_one(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(replace(row, how="one more") if "norm" in row.theirs else row for row in rows)


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
    passed_over=(r"rope_freqs\.weight",),  # read with the configuration
)
PLAIN_GGUF = replace(LLAMA_GGUF, weights=GGUF_BODY)

LLAMA = Family(
    name="llama",
    heads={
        "LlamaForCausalLM": "lm",
        "LlamaForSequenceClassification": "label",
        "LlamaModel": "none",
    },
    fixed={},
    folder=Layout(
        fields=LLAMA_FIELDS + LLAMA_BIAS_FIELDS,
        weights=LLAMA_WEIGHTS,
        parts=(rope(10_000.0), LABELS),
        must_be={"pretraining_tp": 1, "quantization_config": None},
        copies=TIED_COPY,
        passed_over=BUFFERS,
    ),
    gguf_name="llama",
    gguf=LLAMA_GGUF,
)


def like_llama(
    name: str, architecture: str, fixed: Mapping[str, object], folder: Layout, **changes: Any
) -> Family:
    classes = {"ForCausalLM": "lm", "ForSequenceClassification": "label", "Model": "none"}
    heads = {architecture + suffix: head for suffix, head in classes.items()}
    return replace(LLAMA, name=name, heads=heads, fixed=fixed, folder=folder, **changes)


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
        fields=other(LLAMA_FIELDS, context=131_072, kv_heads=8),
        parts=(rope(10_000.0), windows(every_layer), LABELS),
    ),
)
QWEN2 = like_llama(
    "qwen2",
    "Qwen2",
    {"qkv_bias": True},
    replace(
        LLAMA.folder,
        fields=other(LLAMA_FIELDS, context=32_768),
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
        fields=other(LLAMA_FIELDS, context=32_768, head_dim=128) + LLAMA_BIAS_FIELDS[:2],
        parts=(rope(10_000.0), windows(upper_layers, "use_sliding_window"), LABELS),
    ),
    gguf_name="qwen3",
    gguf=PLAIN_GGUF,
    gguf_fixed={"qk_norm": True},
)

# ---- Gemma ---------------------------------------------------------------------------------------

GEMMA_FIXED = {"act": "gelu_tanh", "norm_offset": 1.0}
GEMMA_FIELDS = (
    *other(LLAMA_FIELDS[:9], context=8192, head_dim=256),
    Field("tie_word_embeddings", "tied", bool, True),
    *LLAMA_BIAS_FIELDS[:2],
)
CAPS = (
    Field("final_logit_softcapping", "logit_cap", float, None),
    Field("attn_logit_softcapping", "attention_cap", float, None),
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
        fields=(*GEMMA_FIELDS, Field("hidden_act", "act", str, "gelu_tanh", GELU_TANH)),
        parts=(rope(10_000.0), GEMMA, LABELS),
    ),
    gguf_name="gemma",
    gguf=GEMMA_GGUF,
    gguf_fixed=GEMMA_FIXED,
)
GEMMA_2_3 = replace(
    GEMMA1.folder,
    fields=(*GEMMA_FIELDS, *CAPS, Field("hidden_activation", "act", str, "gelu_tanh", GELU_TANH)),
    weights=(*LLAMA_BODY, *SANDWICH, *DECODER_HEADS),
    must_be={"quantization_config": None, "use_bidirectional_attention": False},
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
            Field("attn_logit_softcapping", "attention_cap", float, 50.0),
            Field("final_logit_softcapping", "logit_cap", float, 30.0),
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
    replace(GEMMA_2_3, parts=(TWO_ROPES, windows(five_of_six), GEMMA, LABELS)),
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
        *LLAMA_GGUF_FIELDS[:4],
        Field("attention.head_count", "kv_heads", int),
        *LLAMA_GGUF_FIELDS[5:8],
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
        "GPT2ForSequenceClassification": "label",
        "GPT2Model": "none",
    },
    fixed={**LAYER_NORM, "positions": "learned"},
    prefix="transformer.",
    folder=Layout(
        fields=(
            Field("vocab_size", "vocab", int, 50_257),
            Field("n_embd", "dim", int, 768),
            Field("n_layer", "layers", int, 12),
            Field("n_head", "heads", int, 12),
            Field("n_head", "kv_heads", int, 12),
            Field("n_embd / n_head", "head_dim", int, head_dim),
            Field("n_inner", "ff", int, lambda values: 4 * values["dim"]),
            Field("n_positions", "context", int, 1024),
            Field("layer_norm_epsilon", "norm_eps", float, 1e-5),
            Field("activation_function", "act", str, "gelu_tanh", GELU_NEW),
            Field("tie_word_embeddings", "tied", bool, True),
        ),
        weights=(
            Row("{p}wte.weight", "embed.weight"),
            Row("{p}wpe.weight", "places.weight"),
            *both("{p}h.{i}.ln_1", "blocks.{i}.attn.norm"),
            *both("{p}h.{i}.attn.c_attn", "blocks.{i}.attn.qkv.{q,k,v}", "q|k|v turned"),
            *both("{p}h.{i}.attn.c_proj", "blocks.{i}.attn.out.o", "turned"),
            *both("{p}h.{i}.ln_2", "blocks.{i}.mlp.norm"),
            *both("{p}h.{i}.mlp.c_fc", "blocks.{i}.mlp.hidden.up", "turned"),
            *both("{p}h.{i}.mlp.c_proj", "blocks.{i}.mlp.out.down", "turned"),
            *both("{p}ln_f", "norm"),
            *DECODER_HEADS,
        ),
        parts=(LABELS,),
        must_be={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "quantization_config": None,
        },
        copies={"lm_head.weight": "{p}wte.weight"},
        passed_over=(r".*\.attn\.(masked_)?bias",),  # the triangle of the mask, in older files
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
    fixed=NEOX_FIXED,
    prefix="gpt_neox.",
    folder=Layout(
        fields=(
            *LLAMA_FIELDS[:4],
            Field("num_attention_heads", "kv_heads", int),
            Field("hidden_size / heads", "head_dim", int, head_dim),
            *LLAMA_FIELDS[6:8],
            Field("layer_norm_eps", "norm_eps", float, 1e-5),
            Field("hidden_act", "act", str, "gelu", GELU),
            Field("attention_bias", "qkv_bias", bool, True),
            Field("attention_bias", "out_bias", bool, True),
            Field("tie_word_embeddings", "tied", bool, False),
        ),
        weights=(
            Row("{p}embed_in.weight", "embed.weight"),
            *NEOX_BODY,
            Row(f"{NEOX_QKV[0]}.weight", f"{NEOX_QKV[1]}.weight", "qkv by head"),
            Row(f"{NEOX_QKV[0]}.bias", f"{NEOX_QKV[1]}.bias", "qkv by head", "qkv_bias"),
            Row(f"{NEOX_OUT[0]}.weight", f"{NEOX_OUT[1]}.weight"),
            Row(f"{NEOX_OUT[0]}.bias", f"{NEOX_OUT[1]}.bias", when="out_bias"),
            *both("{p}final_layer_norm", "norm"),
            Row("embed_out.weight", "head.weight", when="head=lm !tied"),
            DECODER_HEADS[1],
        ),
        parts=(PARTIAL_ROPE, NEOX, LABELS),
        must_be={"quantization_config": None},
        copies={"embed_out.weight": "{p}embed_in.weight"},
        passed_over=(*BUFFERS, r".*\.attention\.(masked_)?bias"),
    ),
    gguf_name="gptneox",
    gguf=Layout(
        fields=(
            *GPT2_GGUF.fields[:-1],
            Field("attention.layer_norm_epsilon", "norm_eps", float),
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
    *LLAMA_FIELDS[:4],
    Field("num_attention_heads", "kv_heads", int),
    Field("hidden_size / heads", "head_dim", int, head_dim),
    LLAMA_FIELDS[6],
    Field("type_vocab_size", "token_types", int, 2),
    Field("layer_norm_eps", "norm_eps", float, 1e-12),
    Field("hidden_act", "act", str, "gelu", GELU),
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
    "quantization_config": None,
}
POSITION_IDS = (r".*embeddings\.position_ids",)
BERT = Family(
    name="bert",
    heads={
        "BertModel": "none",
        "BertForMaskedLM": "mlm",
        "BertForPreTraining": "mlm",
        "BertForSequenceClassification": "label",
    },
    fixed=ENCODER,
    prefix="bert.",
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
        copies={
            "cls.predictions.decoder.weight": "{p}embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        # Whether two sentences belong together: trained beside the model, used by nothing.
        passed_over=(*POSITION_IDS, r"cls\.seq_relationship\.(weight|bias)"),
    ),
)
ROBERTA_FAMILY = Family(
    name="roberta",
    heads={
        "RobertaModel": "none",
        "RobertaForMaskedLM": "mlm",
        "RobertaForSequenceClassification": "label",
    },
    fixed=ENCODER,
    prefix="roberta.",
    folder=Layout(
        fields=(*BERT_FIELDS, Field("max_position_embeddings", "context", int, 512)),
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
        present={"pooler": ("{p}pooler.dense.weight", "classifier.dense.weight")},
        copies={
            "lm_head.decoder.weight": "{p}embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        passed_over=POSITION_IDS,
    ),
)
DISTILBERT = Family(
    name="distilbert",
    heads={
        "DistilBertModel": "none",
        "DistilBertForMaskedLM": "mlm",
        "DistilBertForSequenceClassification": "label",
    },
    fixed={**ENCODER, "pool_act": "relu", "norm_eps": 1e-12},
    prefix="distilbert.",
    folder=Layout(
        fields=(
            Field("vocab_size", "vocab", int, 30_522),
            Field("dim", "dim", int, 768),
            Field("n_layers", "layers", int, 6),
            Field("n_heads", "heads", int, 12),
            Field("n_heads", "kv_heads", int, 12),
            Field("dim / n_heads", "head_dim", int, head_dim),
            Field("hidden_dim", "ff", int, 3072),
            Field("max_position_embeddings", "context", int, 512),
            Field("activation", "act", str, "gelu", GELU),
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
        must_be={"sinusoidal_pos_embds": False, "quantization_config": None},
        present={"pooler": ("pre_classifier.weight",)},
        copies={"vocab_projector.weight": "{p}embeddings.word_embeddings.weight"},
        passed_over=POSITION_IDS,
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


# ---- both directions -----------------------------------------------------------------------------


def family_of(name: object, known: Mapping[str, Family], path: str, where: str) -> Family:
    """The family that a file names, or the list of those that there are."""
    if not isinstance(name, str) or name not in known:
        allowed = f"a family that minift knows: {', '.join(known)}"
        raise FormatError(path, where, name, allowed, "out-of-range")
    return known[name]


def config_from_json(
    data: Mapping[str, Any], path: str, names: Mapping[str, object] | None = None
) -> ModelConfig:
    """ModelConfig from a parsed config.json; `names` are the tensors that its folder has."""
    family = family_of(data.get("model_type"), FAMILIES, path, "model_type")
    layout, found = family.folder, names or {}
    check_fixed(layout.must_be, data, path)
    values: Values = {"family": family.name, "head": head_of(family, data, path), **family.fixed}
    values |= read_fields(layout.fields, data, path)
    for part in layout.parts:
        values |= part.read(data, values, path)
    values |= flags(layout, found, prefix_in(family, found))
    values["tied"] = values["tied"] and values["head"] in ("lm", "mlm")
    return build(values, path)


def head_of(family: Family, data: Mapping[str, Any], path: str) -> str:
    """The kind of head that the configuration's class has."""
    classes = data.get("architectures")
    if classes is None or classes == []:
        return next(iter(family.heads.values()))
    known = ", ".join(family.heads)
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        raise FormatError(path, "architectures", classes, known, "bad-type")
    if classes[0] not in family.heads:
        raise FormatError(path, "architectures", classes[0], known, "out-of-range")
    return family.heads[classes[0]]


def prefix_in(family: Family, names: Mapping[str, object]) -> str:
    """The prefix of a file's tensors: none where the model was saved without a head."""
    return family.prefix if any(name.startswith(family.prefix) for name in names) else ""


def config_to_json(config: ModelConfig, dtype: str) -> Values:
    """config.json as the family's other readers expect it."""
    family = FAMILIES[config.family]
    data: Values = {
        "architectures": [next(c for c, head in family.heads.items() if head == config.head)],
        "model_type": family.name,
        "torch_dtype": dtype,
        "use_cache": True,
        "tie_word_embeddings": config.tied,
    }
    data |= {key: value for key, value in family.folder.must_be.items() if value is not None}
    data |= write_fields(family.folder.fields, config)
    for part in family.folder.parts:
        data |= part.write(config)
    return {key: value for key, value in data.items() if " / " not in key}


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
    values |= flags(layout, tensors, "")
    return build(values | {"tied": "output.weight" not in tensors}, path)
