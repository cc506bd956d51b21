"""Adapters by PEFT from published configurations, on small models, and what they answer.

    python benchmarks/peers/peft_published.py JOB.json OUT.npz

JOB: {"make": [{"name", "config", "family", "folder"}], "check": [{"name", "base", "adapter"}]}.
For "make" a small model of the family is made in FOLDER/base, an adapter of the configuration in
FOLDER/adapter, all of its weights moved; every other number is left to PEFT. In the npz: NAME, the
outputs; for "check" those of an adapter that another program wrote, on the same base.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy
import peft
import torch
import transformers as hf

SIZES = dict(  # noqa: C408
    vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64, head_dim=8,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
ENCODER = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}
FAMILIES = {
    "llama": ("Llama", SIZES),
    "mistral": ("Mistral", SIZES | {"sliding_window": None}),
    "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", SIZES | {"tie_word_embeddings": True}),
    "gemma": ("Gemma", SIZES),
    "gemma2": ("Gemma2", SIZES | {"query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3", SIZES | {"query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2", dict(  # noqa: C408
vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                          pad_token_id=0, bos_token_id=1, eos_token_id=2)),
    "gpt_neox": ("GPTNeoX", ENCODER | {"rotary_pct": 0.25}),
    "bert": ("Bert", ENCODER),
    "roberta": ("Roberta", ENCODER | {"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", dict(  # noqa: C408
vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48,
                                      max_position_embeddings=64, pad_token_id=0)),
}  # fmt: skip
CLASSES = {"SEQ_CLS": "ForSequenceClassification", "FEATURE_EXTRACTION": "Model",
           "TOKEN_CLS": "ForTokenClassification",
           "QUESTION_ANS": "ForQuestionAnswering"}  # fmt: skip


def class_of(job, config):
    name, _ = FAMILIES[job["family"]]
    mapped = (config.get("auto_mapping") or {}).get("base_model_class")
    if mapped:
        return mapped
    masked = job["family"] in ("bert", "roberta", "distilbert")
    usual = "ForMaskedLM" if masked else "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    return name + CLASSES.get(config.get("task_type"), usual)


def base_of(job, config):
    name, sizes = FAMILIES[job["family"]]
    kind = "Gemma3Text" if name == "Gemma3" else name
    torch.manual_seed(3)
    cls = class_of(job, config)
    labels = 2 if cls.endswith("QuestionAnswering") else job.get("labels", 3)
    settings = getattr(hf, f"{kind}Config")(**sizes, num_labels=labels)
    cls = "Gemma3TextModel" if cls == "Gemma3Model" else cls
    model = getattr(hf, cls)(settings).eval()
    with torch.no_grad():  # norms and biases too: what starts at one or zero hides mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(job["folder"] + "/base")
    return getattr(hf, cls).from_pretrained(
        job["folder"] + "/base", dtype=torch.float32, attn_implementation="eager"
    ).eval()  # fmt: skip


def settings_of(config, folder):
    """The configuration of a file as PEFT reads it: unknown keys are left out with a warning."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "adapter_config.json").write_text(json.dumps(config))
    return peft.PeftConfig.from_pretrained(folder)


def make(job):
    config = dict(job["config"])
    config["base_model_name_or_path"] = None
    for key, value in (("num_layers", 2), ("token_dim", 32), ("num_attention_heads", 4),
                       ("num_virtual_tokens", 5), ("encoder_hidden_size", 8)):  # fmt: skip
        if config.get(key) is not None:
            config[key] = value
    if config.get("kasa_config") or config.get("init_lora_weights") == "mica":
        config["r"] = job["config"]["r"] = 4  # no more than the matrices have
    settings = settings_of(config, job["folder"] + "/asked")
    settings.inference_mode = False
    model = base_of(job, config)
    if job.get("tokens"):
        model.resize_token_embeddings(job["tokens"])
    model = peft.get_peft_model(model, settings)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()  # a prompt is saved as its encoder computes it: without dropout
    place = job["folder"] + "/adapter"
    kept = {"save_embedding_layers": True} if job.get("tokens") else {}
    model.save_pretrained(place, safe_serialization=not job.get("bin"), **kept)
    path = Path(place) / "adapter_config.json"
    saved = json.loads(path.read_text())
    # As published: the original's own words, where PEFT only wrote them anew.
    cut = ("num_layers", "token_dim", "num_attention_heads", "num_virtual_tokens",
           "encoder_hidden_size")  # fmt: skip
    named = {key: value for key, value in job["config"].items() if key not in cut}
    if config.get("target_modules") is None:
        named.pop("target_modules", None)
    old = {key: value for key, value in saved.items() if key in job["config"]}
    path.write_text(json.dumps({**old, **named}, indent=2))
    if job.get("raw"):  # names as a raw state dict has them, the adapter's name inside
        rename(place, job["raw"])
    return answer(model.eval())


def rename(place, how):
    from safetensors.torch import load_file, save_file

    path = Path(place) / "adapter_model.safetensors"
    tensors = load_file(path)
    words = {"lora_A.weight": "lora_A.default.weight", "lora_B.weight": "lora_B.default.weight"}
    out = {}
    for key, tensor in tensors.items():
        for one, other in words.items():
            key = key.replace(one, other) if how == "default" else key
        if how == "language_model":
            key = key.replace("base_model.model.model.", "base_model.model.model.language_model.")
        out[key] = tensor
    save_file(out, path, {"format": "pt"})


@torch.no_grad()
def answer(model):
    tokens = (torch.arange(14).view(2, 7) * 17 + 5) % 60 + 4
    out = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    found = out.get("logits", out.get("last_hidden_state", out.get("start_logits")))
    return found[:, -7:].numpy() if found.dim() == 3 else found.numpy()


def check(job):
    config = hf.AutoConfig.from_pretrained(job["base"])
    cls = getattr(hf, config.architectures[0])
    model = cls.from_pretrained(job["base"], dtype=torch.float32, attn_implementation="eager")
    if job.get("tokens"):
        model.resize_token_embeddings(job["tokens"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        warnings.filterwarnings("error", message=".*unexpected.*")
        return answer(peft.PeftModel.from_pretrained(model.eval(), job["adapter"]).eval())


def main():
    jobs, data, failed = json.loads(Path(sys.argv[1]).read_text()), {}, {}
    for verb in (make, check):
        for job in jobs[verb.__name__]:
            try:
                data[job["name"]] = verb(job)
            except Exception as error:
                failed[job["name"]] = f"{type(error).__name__}: {error}"[:300]
    data["failed"] = numpy.array(json.dumps(failed))
    versions = {"transformers": hf.__version__, "peft": peft.__version__}
    data["versions"] = numpy.array(json.dumps(versions))
    numpy.savez(sys.argv[2], **data)


if __name__ == "__main__":
    main()
