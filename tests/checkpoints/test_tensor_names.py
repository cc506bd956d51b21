"""Published layouts of the golden models: each gives the model that transformers' numbers prove."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model, survey
from minift.checkpoints.save import folder_files
from minift.checkpoints.tensor_names import file_names
from minift.errors import FormatError, Notice
from minift.formats import safetensors

FAMILIES = Path(__file__).parents[1] / "golden/families"
TRIANGLE = torch.tril(torch.ones(1, 1, 8, 8))


def folder(place, name, tensors=lambda t: t, config=lambda c: c):
    """The golden folder with other names for its tensors and other words in its config.json."""
    source = FAMILIES / name if (FAMILIES / name).exists() else FAMILIES.parent / name
    place.mkdir(parents=True, exist_ok=True)
    file = safetensors.read(source / "model.safetensors")
    found = tensors({key: file.load(key).clone() for key in file.tensors})
    safetensors.write(place / "model.safetensors", found)
    data = config(json.loads((source / "config.json").read_text()))
    (place / "config.json").write_text(json.dumps(data))
    return place


def golden(name):
    source = FAMILIES / name
    return load_model(source if source.exists() else FAMILIES.parent / name)


def equal(one, other, but=""):
    """Every parameter of `one` but those under `but` is the other's, bit for bit."""
    theirs = dict(other.named_parameters())
    mine = {key: p for key, p in one.named_parameters() if not but or not key.startswith(but)}
    return all(torch.equal(p, theirs[key]) for key, p in mine.items()) and len(mine) > 9


def without(prefix):
    return lambda tensors: {key.removeprefix(prefix): value for key, value in tensors.items()}


def under(prefix, heads=("lm_head", "score", "cls.", "classifier")):
    return lambda tensors: {
        key if key.startswith(heads) else prefix + key: value for key, value in tensors.items()
    }


def old_norms(tensors):
    words = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = re.compile("|".join(words))
    return {old.sub(lambda m: words[m[0]], key): value for key, value in tensors.items()}


def beside(**more):
    return lambda tensors: tensors | {key.replace("__", "."): v for key, v in more.items()}


def older_gpt2(tensors):
    buffers = {f"h.{i}.attn.bias": TRIANGLE.to(torch.uint8) for i in range(2)}
    buffers |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return without("transformer.")(tensors) | buffers


def older_neox(tensors):
    place = "gpt_neox.layers.0.attention."
    tensors |= {f"{place}bias": TRIANGLE.bool(), f"{place}masked_bias": torch.tensor(-1e9)}
    return tensors | {f"{place}rotary_emb.inv_freq": torch.ones(2)}


SILENT = {  # other names, and buffers: nobody needs to know
    "gamma and beta": ("bert", old_norms),
    "gamma and beta of RoBERTa": ("roberta_body", old_norms),
    "a body inside of a class": ("bert_body", under("bert.")),
    "a class as a body": ("bert", without("bert.")),
    "DistilBERT as a body": ("distilbert", without("distilbert.")),
    "Llama as a body": ("llama_gqa", without("model.")),
    "Llama twice inside": ("llama_gqa", under("model.")),
    "Llama for answers": ("llama_gqa", lambda t: {k.replace("model.", "transformer."): v
                                                  for k, v in t.items()}),
    "GPT-2 as first published": ("gpt2", older_gpt2),
    "GPT-NeoX as first published": ("gpt_neox", older_neox),
    "GPT-NeoX with another name for its head": ("gpt_neox", lambda t: {
        k.replace("embed_out", "lm_head"): v for k, v in t.items()}),
    "positions": ("roberta_labels", beside(roberta__embeddings__position_ids=torch.arange(64))),
    "frequencies": ("llama_gqa", beside(
        model__layers__1__self_attn__rotary_emb__inv_freq=torch.ones(3))),
    "the head in place of the embedding": ("qwen2", lambda t: {
        k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()}),
    "the embedding and its copy": ("qwen2", lambda t: t | {
        "lm_head.weight": t["model.embed_tokens.weight"].clone()}),
}  # fmt: skip


@pytest.mark.parametrize("case", SILENT)
def test_names_and_buffers_of_older_files(case, tmp_path):
    name, change = SILENT[case]
    model = load_model(folder(tmp_path, name, change))
    assert model.config == golden(name).config
    assert equal(model, golden(name))


WORDS = {
    "cls.predictions.bias": (53,), "cls.predictions.transform.dense.weight": (24, 24),
    "cls.predictions.transform.dense.bias": (24,), "cls.predictions.decoder.weight": (53, 24),
    "cls.predictions.transform.LayerNorm.gamma": (24,),
    "cls.predictions.transform.LayerNorm.beta": (24,),
}  # fmt: skip
PAIR = {"cls.seq_relationship.weight": (2, 24), "cls.seq_relationship.bias": (2,)}
POOLER = {"roberta.pooler.dense.weight": (24, 24), "roberta.pooler.dense.bias": (24,)}
LAYERS = {"classifier.weight": (5, 24), "classifier.bias": (5,)}
ANSWERS = {"qa_outputs.weight": (2, 24), "qa_outputs.bias": (2,)}
VALUES = {"v_head.summary.weight": (1, 24), "v_head.summary.bias": (1,)}
CHOICES = {
    "multiple_choice_head.summary.weight": (1, 24),
    "multiple_choice_head.summary.bias": (1,),
}
SAID = {  # the golden folder, what is in the file besides, the class, and what is said
    "pretraining heads": ("bert_labels", WORDS | PAIR, None,
                          ("6 tensors of the masked-word head", "2 tensors of the next-sentence")),
    "pretraining": ("bert", PAIR, "BertForPreTraining", ("2 tensors of the next-sentence head",)),
    "distillation": ("bert", {"fit_denses.3.weight": (3, 24)}, None,
                     ("1 tensor of the distillation layers ignored: fit_denses.3.weight",)),
    "a pooler beside a classifier": ("roberta_labels", POOLER, None, ("2 tensors of the pooler",)),
    "a value head": ("gpt2", VALUES, None, ("2 tensors of the value head ignored: v_head.summ",)),
    "two heads": ("gpt2", CHOICES, "GPT2DoubleHeadsModel", ("of the multiple-choice head",)),
    "an answer head": ("gpt2", ANSWERS, None, ("2 tensors of the question-answering head",)),
    "labels and a language head": ("llama_labels", {"lm_head.weight": (53, 24)}, None,
                                   ("1 tensor of the language head ignored: lm_head.weight",)),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_trained_tensors_without_a_use_are_said_once_a_kind(case, tmp_path):
    name, shapes, cls, lines = SAID[case]
    more = {key: torch.ones(shape) for key, shape in shapes.items()}
    place = folder(
        tmp_path, name, lambda t: t | more, lambda c: c | ({"architectures": [cls]} if cls else {})
    )
    for look in (load_model, survey):
        with pytest.warns(Notice) as said:
            look(place)
        texts = [str(warning.message) for warning in said]
        assert len(texts) == len(lines)
        for line in lines:
            assert any(line in text for text in texts), texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(place)
    assert model.config == golden(name).config
    assert equal(model, golden(name))


OTHER_TASKS = {
    "BertForTokenClassification": ("bert", LAYERS), "BertForQuestionAnswering": ("bert", ANSWERS),
    "BertForMultipleChoice": ("bert", LAYERS), "BertForNextSentencePrediction": ("bert", PAIR),
    "RobertaForTokenClassification": ("roberta", LAYERS),
    "RobertaForQuestionAnswering": ("roberta", ANSWERS),
    "RobertaForMultipleChoice": ("roberta", LAYERS),
    "DistilBertForTokenClassification": ("distilbert", LAYERS),
    "DistilBertForQuestionAnswering": ("distilbert", ANSWERS),
    "GPT2ForTokenClassification": ("gpt2", LAYERS), "GPT2ForQuestionAnswering": ("gpt2", ANSWERS),
    "LlamaForTokenClassification": ("llama_gqa", {"score.weight": (5, 24), "score.bias": (5,)}),
    "LlamaForQuestionAnswering": ("llama_gqa", ANSWERS),
    "MistralForTokenClassification": ("mistral", {"score.weight": (5, 24), "score.bias": (5,)}),
    "GPTNeoXForTokenClassification": ("gpt_neox", {"classifier.weight": (5, 32)}),
}  # fmt: skip


@pytest.mark.parametrize("cls", OTHER_TASKS)
def test_a_class_of_another_task_is_loaded_without_its_head(cls, tmp_path):
    name, shapes = OTHER_TASKS[cls]
    prefix = {"llama_gqa": "model.", "mistral": "model.", "gpt2": "transformer."}.get(name)
    prefix = prefix or {"gpt_neox": "gpt_neox."}.get(name, f"{name}.")
    head = {key: torch.ones(shape) for key, shape in shapes.items()}

    def body(tensors):
        return {key: v for key, v in tensors.items() if key.startswith(prefix)} | head

    place = folder(tmp_path, name, body, lambda c: c | {"architectures": [cls]})
    with pytest.warns(Notice, match=f"{len(head)} tensors? of the .* ignored: "):
        model = load_model(place)
    assert model.head is None
    assert equal(model, golden(name))


def test_a_name_that_no_list_has_is_still_refused(tmp_path):
    more = {
        "bert.encoder.layer.0.adapter.weight": torch.ones(2),
        "cls.predictions.x": torch.ones(1),
    }
    with pytest.raises(FormatError) as caught:
        load_model(folder(tmp_path, "bert", lambda t: t | more))
    assert "unexpected bert.encoder.layer.0.adapter.weight" in str(caught.value)
    assert "unexpected cls.predictions.x" in str(caught.value)


def test_two_tensors_for_one_place_are_refused(tmp_path):
    def twice(tensors):
        return tensors | {"norm.weight": tensors["model.norm.weight"].clone()}

    with pytest.raises(FormatError, match=r"found model\.norm\.weight and norm\.weight") as caught:
        load_model(folder(tmp_path, "llama_gqa", twice))
    assert caught.value.code == "dup-key"


# ---- Gemma 3 with its eyes shut ------------------------------------------------------------------


def with_vision(names):
    def change(tensors):
        model = {re.sub("^model\\.", names, key): value for key, value in tensors.items()}
        tower = "model.vision_tower." if names.startswith("model") else "vision_tower."
        projector = tower.replace("vision_tower", "multi_modal_projector")
        return model | {f"{tower}a.weight": torch.ones(2), f"{projector}b": torch.ones(3)}

    return change


def whole(data):
    """The text's configuration inside of the whole model's."""
    text = {key: value for key, value in data.items() if key != "architectures"}
    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    return outer | {"text_config": text, "vision_config": {"hidden_size": 8}}


@pytest.mark.parametrize("names", ["language_model.model.", "model.language_model."])
def test_gemma_3_is_loaded_without_its_vision(names, tmp_path):
    with pytest.warns(Notice) as said:
        model = load_model(folder(tmp_path, "gemma3", with_vision(names), whole))
    texts = " ".join(str(warning.message) for warning in said)
    assert "1 tensor of the vision tower ignored" in texts
    assert "1 tensor of the image projector ignored" in texts
    assert len(said) == 2
    assert model.config == golden("gemma3").config
    assert equal(model, golden("gemma3"))


def test_the_part_of_another_model_is_not_taken_for_the_text(tmp_path):
    def other(data):
        return whole(data) | {"text_config": {"model_type": "llama"}}

    with pytest.raises(FormatError, match=r"text_config: .* configuration of gemma3_text"):
        load_model(folder(tmp_path, "gemma3", config=other))


# ---- tied in the configuration, different in the file --------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "gemma", "gpt2"])
def test_a_head_of_its_own_is_loaded_untied_whatever_the_configuration_says(name, tmp_path):
    own = torch.full((53, 24), 0.5)
    place = folder(tmp_path / "a", name, lambda t: t | {"lm_head.weight": own})
    with pytest.warns(Notice, match=r"lm_head\.weight differs from .*: loaded untied"):
        model = load_model(place)
    assert not model.config.tied
    assert torch.equal(model.head.weight, own)
    assert equal(model, golden(name), but="head.")
    files = folder_files(model, {})
    assert json.loads(files["config.json"])["tie_word_embeddings"] is False


def test_a_bias_of_the_decoder_is_the_one_that_it_adds(tmp_path):
    own = torch.full((53,), 0.5)
    place = folder(tmp_path, "bert", lambda t: t | {"cls.predictions.decoder.bias": own})
    with pytest.warns(Notice, match=r"decoder\.bias differs from cls\.predictions\.bias"):
        model = load_model(place)
    assert model.config.tied
    assert torch.equal(model.head.decoder.bias, own)


def test_a_bias_is_written_twice_where_the_matrix_is_not_tied(tmp_path):
    """Newer transformers take the decoder's then, older ones the other."""
    own = torch.full((53, 24), 0.5)
    place = folder(tmp_path, "bert", lambda t: t | {"cls.predictions.decoder.weight": own})
    with pytest.warns(Notice, match="loaded untied"):
        model = load_model(place)
    (tmp_path / "again").mkdir()
    for name, chunks in folder_files(model, {}).items():
        raw = chunks if isinstance(chunks, bytes) else b"".join(map(bytes, chunks))
        (tmp_path / "again" / name).write_bytes(raw)
    file = safetensors.read(tmp_path / "again/model.safetensors")
    both = [file.load(f"cls.predictions.{name}") for name in ("bias", "decoder.bias")]
    assert torch.equal(*both)
    assert equal(load_model(tmp_path / "again"), model)


def test_the_bias_of_the_decoder_alone_is_enough(tmp_path):
    def alone(tensors):
        own = tensors.pop("cls.predictions.bias")
        return tensors | {"cls.predictions.decoder.bias": own}

    assert equal(load_model(folder(tmp_path, "bert", alone)), golden("bert"))


def test_a_head_of_another_shape_than_what_it_is_tied_to_is_refused(tmp_path):
    place = folder(tmp_path, "qwen2", lambda t: t | {"lm_head.weight": torch.ones(54, 24)})
    with pytest.raises(
        FormatError, match=r'"lm_head\.weight": found \(54, 24\), allowed \(53, 24\)'
    ):
        load_model(place)


# ---- without a class or a model_type -------------------------------------------------------------


def dropping(*keys):
    return lambda config: {key: value for key, value in config.items() if key not in keys}


CLASSLESS = {
    "llama_gqa": "lm", "gpt2": "lm", "gpt2_odd": "lm", "gpt_neox": "lm", "bert": "none",
    "bert_body": "none", "roberta": "none", "distilbert": "none", "gpt2_body": "lm",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::minift.errors.Notice")
@pytest.mark.parametrize("name", CLASSLESS)
def test_without_a_class_the_usual_head_is_loaded_where_it_is_there(name, tmp_path):
    model = load_model(folder(tmp_path, name, config=dropping("architectures")))
    assert model.config.head == CLASSLESS[name]


def test_without_a_class_and_a_head_there_is_a_body(tmp_path):
    def body(tensors):
        return {key: value for key, value in tensors.items() if key != "lm_head.weight"}

    model = load_model(folder(tmp_path, "llama_gqa", body, dropping("architectures")))
    assert model.config.head == "none"
    assert equal(model, golden("llama_gqa"))


@pytest.mark.parametrize("name", ["roberta", "distilbert", "bert", "llama_gqa", "bert_labels"])
def test_a_body_that_kept_the_name_of_a_class_is_read_as_a_body(name, tmp_path):
    prefix = "model." if name == "llama_gqa" else f"{name.removesuffix('_labels')}."

    def body(tensors):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    with pytest.warns(Notice, match="names a class with a head, and the weights have none"):
        model = load_model(folder(tmp_path / "a", name, body))
    assert model.config.head == "none"
    assert equal(model, golden(name))

    def inside(tensors):
        return {key: value for key, value in tensors.items() if key.startswith(prefix)}

    with pytest.raises(FormatError, match="missing"):  # a class did write it, and lost its head
        load_model(folder(tmp_path / "b", name, inside))


TYPELESS = {
    "bert_body": ("bert", lambda t: t), "bert": ("bert", lambda t: t),
    "roberta": ("roberta", lambda t: t), "roberta_body": ("roberta", lambda t: t),
    "distilbert": ("distilbert", lambda t: t), "gpt2": ("gpt2", lambda t: t),
    "gpt2_body": ("gpt2", lambda t: t), "gpt_neox": ("gpt_neox", lambda t: t),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(ignored|head).*:minift.errors.Notice")
@pytest.mark.parametrize("name", TYPELESS)
def test_keys_and_tensors_tell_a_family_that_is_not_named(name, tmp_path):
    family, _ = TYPELESS[name]

    def untold(config):
        old = config | ({"type_vocab_size": 2} if name == "bert_body" else {})
        return dropping("model_type", "architectures")(old)

    def types(tensors):
        key = "embeddings.token_type_embeddings.weight"
        return tensors | ({key: tensors[key][:2].clone()} if name == "bert_body" else {})

    with pytest.warns(Notice, match=f"no model_type: read as {family}, by its keys and tensors"):
        model = load_model(folder(tmp_path, name, types, untold))
    assert model.config.family == family


def test_the_class_tells_a_family_that_is_not_named(tmp_path):
    with pytest.warns(Notice, match="read as mistral, by its class"):
        model = load_model(folder(tmp_path, "mistral", config=dropping("model_type")))
    assert model.config == golden("mistral").config


def test_where_several_families_fit_none_is_guessed(tmp_path):
    untold = dropping("model_type", "architectures")
    with pytest.raises(FormatError, match=r"model_type: found nothing, allowed a family .*: llama"):
        load_model(folder(tmp_path, "llama_gqa", config=untold))


def test_the_count_of_labels_is_the_classifiers_where_no_names_are_given(tmp_path):
    model = load_model(folder(tmp_path, "bert_labels", config=dropping("id2label", "label2id")))
    assert model.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_our_names_in_the_words_of_the_files():
    names = file_names(golden("gpt2").config)
    assert names["blocks.1.attn.qkv.k.weight"] == "transformer.h.1.attn.c_attn.weight"
    assert names["embed.weight"] == "transformer.wte.weight"


def hostile():
    """For tests/hostile.py: names that collide, and heads that no head is."""

    def attempt(place, name, more, change):
        tensors = {key: torch.ones(shape) for key, shape in more.items()}
        shutil.rmtree(place / "f", ignore_errors=True)
        load_model(folder(place / "f", name, lambda t: t | tensors, lambda c: c | change))

    cases = {
        "two norms": ("bert", {"bert.embeddings.LayerNorm.gamma": (24,)}, {}, "dup-key"),
        "a body twice": ("gpt2", {"wte.weight": (53, 24)}, {}, "dup-key"),
        "a head of no shape": ("qwen2", {"lm_head.weight": ()}, {}, "shape-mismatch"),
        "unknown": ("llama_gqa", {"v_headless.weight": (1,)}, {}, "shape-mismatch"),
        "text of nothing": ("gemma3", {}, {"model_type": "gemma3", "text_config": 3}, "bad-type"),
        "text of another": (
            *("gemma3", {}, {"model_type": "gemma3", "text_config": {"model_type": "bert"}}),
            "bad-type",
        ),
        "billions of layers": (
            *("bert", {}, {"num_hidden_layers": 2**31}), "shape-mismatch",
        ),
        "no type and no keys": ("gpt2", {}, {"model_type": None}, "out-of-range"),
    }  # fmt: skip
    return {
        key: (partial(attempt, name=name, more=more, change=change), code)
        for key, (name, more, change, code) in cases.items()
    }
