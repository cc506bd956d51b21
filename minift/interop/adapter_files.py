"""Adapter folders as PEFT writes and reads them; bottlenecks, which it has not, as AdapterHub.

    adapter_config.json          the method and its options
    adapter_model.safetensors    tensors, by the names of the family that the base came from:
                                 `base_model.model.` + `model.layers.0.self_attn.q_proj` +
                                 `.lora_A.weight`; soft prompts: `prompt_embeddings`
    adapter_model.bin            the same, as PEFT wrote it first; read only
    minift_state.safetensors     what only training needs; other programs pass it over

What is written is sorted, so the same adapter gives the same bytes. PEFT ignores a key that it does
not know and leaves a slot empty that it does not find; here both are refused, all of them at once.
Nothing is made before the tensors that are there have the shapes of what is to be made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from minift.checkpoints.hub.assets import peft_name
from minift.checkpoints.open import TensorFile, headers
from minift.checkpoints.save import as_json
from minift.checkpoints.tokenizers import template_in, text_format_in
from minift.errors import ConfigError, FormatError, notice
from minift.formats import safetensors
from minift.formats.overwrite import ADAPTER, own_files
from minift.interop import adapterhub, head, modules_to_save
from minift.interop.contents import PREFIX, contents_of, problems_of
from minift.interop.methods import FORMATS
from minift.interop.module_names import ModuleNames
from minift.interop.peft_format import CONFIG, Format, SoftPromptFormat, misfits
from minift.interop.stored import LABELS, TASKS, TENSORS, Stored, stored
from minift.interop.stored import AnyStored as AnyStored
from minift.interop.stored import adapter_folder as adapter_folder
from minift.interop.training_state import STATE, put_state, state_config, training_state
from minift.model.transformer import Transformer
from minift.peft.adapters import (
    DEFAULT,
    active,
    check_new,
    config_of,
    known,
    restored_on_error,
    use,
)
from minift.peft.bottleneck import Bottleneck
from minift.peft.head import OwnHead
from minift.peft.methods import attach
from minift.peft.module_copy import Copy
from minift.peft.slots import adapters_of, changes
from minift.storage import write_folder
from minift.tokenizers import text_format
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat

# ---- writing -------------------------------------------------------------------------------------


def save_adapter(
    model: Transformer,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter, by default the active one, as a folder that PEFT loads (AdapterHub, for
    bottlenecks); whole or not at all. The same adapter gives the same bytes.

    How its texts are made, the chat template and what ends an answer too, is written with it: as
    `fit` found it or `load_adapter` read it, and as `tokenizer` does it, where one is given.

    Raises ConfigError where nothing is attached or `path` is a folder that is not to be replaced
    (`overwrite` replaces only what minift wrote); StorageError where the disk refuses.
    """
    chosen = active(model) if name is None else name
    if chosen is None:
        raise ConfigError("save_adapter: nothing is attached to the model")
    files = adapter_files(model, chosen)
    texts = known(model, chosen, "save_adapter").texts.get(chosen)
    if tokenizer is not None:
        texts = (texts or TextFormat()).by(tokenizer)
    facts: dict[str, Any] = {} if texts is None else {"texts": texts.as_json()}
    if model.source:
        facts["base"] = model.source
    if facts:
        files[text_format.FILE] = as_json(facts)
    write_folder(path, files, overwrite=overwrite, ours=own_files(ADAPTER))


def adapter_files(model: Transformer, name: str) -> dict[str, Any]:
    known(model, name, "save_adapter")
    config = config_of(model, name)
    if isinstance(config, Bottleneck):
        return adapterhub.adapter_files(model, name)
    file = FORMATS[type(config)]
    options: dict[str, Any]
    if isinstance(file, SoftPromptFormat):
        options, prefix = file.write(config, model), "base_model."
    else:
        found, module_names = own_changes(model, name), ModuleNames(model)
        for path in found:
            if path not in module_names.by_ours:
                family = model.config.family
                raise ConfigError(f"save_adapter: {family} has no name for {path}")
        options, prefix = file.write(config, module_names, found), PREFIX
    own = head.to_file(model, name, prefix) | modules_to_save.to_file(model, name, prefix)
    tensors = {key: t.cpu().contiguous() for key, t in (exported(model, name) | own).items()}
    data = {
        "peft_type": file.peft_type,
        "task_type": TASKS.get(model.config.head),
        "base_model_name_or_path": peft_name(model.source),
        "inference_mode": True,
    } | modules_to_save.options(model, name, head.modules(model, name))
    if not hasattr(config, "rank"):
        del data["bias"]  # an option of LoRA's
    metadata = {"format": "pt"} | safetensors.MARK
    if model.config.head == "label":
        metadata[LABELS] = json.dumps(list(model.config.labels), ensure_ascii=False)
    files: dict[str, Any] = {
        CONFIG: as_json(data | options),
        TENSORS: safetensors.encode(dict(sorted(tensors.items())), metadata),
    }
    state = training_state(model, name)
    if state:
        facts = {"method": type(config).__name__, "config": json.dumps(asdict(config))}  # type: ignore[call-overload]
        files[STATE] = safetensors.encode(dict(sorted(state.items())), facts | safetensors.MARK)
    return files


def exported(model: Transformer, name: str) -> dict[str, Tensor]:
    """The method's own tensors, as its files have them."""
    file = FORMATS[type(config_of(model, name))]
    out: dict[str, Tensor] = {}
    if isinstance(file, SoftPromptFormat):
        out = file.to_file(model, known(model, name, "save_adapter").parts[name])
    else:
        found, module_names = own_changes(model, name), ModuleNames(model)
        for theirs in module_names.of(found):
            parts = [found.get(path) for path in theirs.ours]
            for leaf, tensor in file.to_file(theirs, parts).items():
                out[f"{PREFIX}{theirs.path}.{leaf}"] = tensor
    return {key: tensor.detach() for key, tensor in out.items()}


def own_changes(model: Transformer, name: str) -> dict[str, nn.Module]:
    """What the method itself made, by path, each once: a label head is saved by other names
    (head.py), the rows of a tied head as the table's."""
    return {
        path: change
        for path, _, change in changes(model, name)
        if not isinstance(change, OwnHead | Copy) and not getattr(change, "tied", False)
    }


# ---- reading -------------------------------------------------------------------------------------


def load_adapter(
    model: Transformer,
    path: str | os.PathLike[str],
    *,
    name: str = DEFAULT,
    tokenizer: Tokenizer | None = None,
    trainable: bool = False,
) -> Transformer:
    """Attach an adapter of PEFT, AdapterHub or minift. Every tensor is used, every slot is filled.

    `path` is a folder, or `org/name` in the cache. A classifier gives the model a head for its
    labels, and a resized vocabulary its rows. Raises FormatError with the whole list of what does
    not fit, and the model is as it was. With `trainable`, training may go on from it, prompt
    encoders and all; without, an adapter that would change nothing is refused. A `tokenizer` makes
    and ends texts from now on as in the training of the adapter, where that is known.
    """
    check_new(model, name)
    found = stored(path)
    texts = texts_of(found.folder)
    if isinstance(found, adapterhub.Stored):
        adapterhub.load(model, found, name=name, trainable=trainable)
        return with_texts(model, name, texts, tokenizer)
    labels, tokens = len(model.config.labels), model.config.vocab
    try:
        with base_kept(model), restored_on_error(model, name):
            new_head = fit_labels(model, found)
            left_out = put(model, name, found, trainable)
    except FormatError:
        own, theirs = model.config.family, family_of(found.base)
        if theirs in (None, own):
            raise
        found_text, allowed = f"an adapter for {theirs}", f"one for {own}, which the model is"
        at = found.folder / CONFIG
        raise FormatError(at, "base", found_text, allowed, "shape-mismatch") from None
    now = model.config
    if new_head and labels:
        notice(found.folder, f"its head for {len(now.labels)} labels replaces the base's head for "
               f"{labels}")  # fmt: skip
    if new_head and loose(model, found):
        notice(found.folder, "neither the adapter nor the base has the classifier's dense layer: "
               "it is drawn at random, as in PEFT, and the scores mean nothing")  # fmt: skip
    if now.vocab != tokens:
        notice(found.folder, f"the model has {now.vocab:,} tokens now, one for each row of the "
               f"adapter's embedding; it had {tokens:,}")  # fmt: skip
    if left_out:
        notice(found.folder, f"{left_out} tensors of the vision part are ignored: minift has the "
               "text model alone")  # fmt: skip
    use(model, name)
    return with_texts(model, name, texts, tokenizer)


def with_texts(
    model: Transformer, name: str, texts: TextFormat | None, tokenizer: Tokenizer | None
) -> Transformer:
    """Keep with an adapter how its texts were made, and let a tokenizer make them so."""
    if texts is not None:
        known(model, name, "load_adapter").texts[name] = texts
        if tokenizer is not None:
            text_format.apply(tokenizer, texts)
    return model


def texts_of(folder: Path) -> TextFormat | None:
    """How an adapter's texts were made: as minift.json says, or its own chat template does."""
    texts = text_format_in(folder)
    if texts is None:
        template = template_in(folder)
        texts = None if template is None else TextFormat(chat_template=template)
    return texts


def family_of(base: str) -> str | None:
    """The family of the model that an adapter names; None where that is not here."""
    try:
        return headers(base).config.family if base else None
    except (ConfigError, FormatError):
        return None


@contextmanager
def base_kept(model: Transformer) -> Iterator[None]:
    """An error puts back what was replaced: the head, and a table of another size."""
    config, modules = model.config, dict(model._modules)
    adapters = adapters_of(model)
    slots = {} if adapters is None else dict(adapters.slots.items())
    try:
        yield
    except BaseException:
        replaced = {key for key in modules if modules[key] is not model._modules.get(key)}
        adapters = adapters_of(model)
        model.config, model._modules = config, modules
        if adapters is not None:
            model.adapters = adapters
            # A slot is called by a hook of its module: with the old module its old slot returns.
            for key in [key for key in adapters.slots if key.partition("/")[0] in replaced]:
                del adapters.slots[key]
            for key in slots.keys() - set(adapters.slots):
                adapters.slots[key] = slots[key]
        raise


def fit_labels(model: Transformer, found: Stored) -> bool:
    """Give a classifier's model a head for its labels; -> whether it got one."""
    if not found.classifies:
        return False
    names, own = found.labels, model.config.labels
    if model.config.head != "label":
        if not names:
            raise ConfigError(
                f"load_adapter: {found.folder} is a classifier without a head, and the model has "
                "no head for labels; minift.with_labels gives it one"
            )
        head.give(model, names)
        return True
    if found.names_labels and names != own:
        raise ConfigError(
            f"load_adapter: {found.folder} has the labels {', '.join(names)}, and the model "
            f"{', '.join(own)}"
        )
    if names and len(names) != len(own):
        head.give(model, names)
        return True
    return False


def loose(model: Transformer, found: Stored) -> bool:
    """Whether the dense layer inside of the family's classifier came from nowhere."""
    inside = {path for ours, path in head.theirs(model).items() if ours.startswith("pooler.")}
    return bool(inside) and not any(key.endswith(tuple(inside)) for key in found.tensors.tensors)


def put(model: Transformer, name: str, found: Stored, trainable: bool) -> int:
    """Look at all of the file, then attach and fill; -> how many tensors are left out."""
    file, opened, soft = found.file, found.tensors, isinstance(found.file, SoftPromptFormat)
    module_names = ModuleNames(model)
    contents = contents_of(opened, module_names, soft=soft)
    resized = modules_to_save.resize(model, module_names, contents, opened)
    if resized:
        module_names = ModuleNames(model)
        contents = contents_of(opened, module_names, soft=soft)
    there = contents.shapes(opened)
    config = said = found.config(module_names, there)
    own = head.wanted(model, found.data, contents.weights, "base_model." if soft else PREFIX)
    whole = modules_to_save.wanted(model, module_names, found.data, contents, own)
    shapes = {key: tuple(entry.shape) for key, entry in opened.tensors.items()}
    problems = problems_of(contents) + change_problems(
        model, module_names, file, said, there, found
    )
    problems += head.misfits_of(model, own, shapes) + modules_to_save.misfits_of(
        model, whole, shapes
    )
    if problems:
        count = f"{len(problems)} that do not fit"
        allowed = "the adapter's tensors for this model"
        raise FormatError(opened.path, "tensors", count, allowed, "shape-mismatch", problems)
    tensors = {
        path: {leaf: finite(opened, key) for leaf, key in leaves.items()}
        for path, leaves in contents.changes.items()
    }
    heads = {key: finite(opened, key) for key in own.values()}
    copies = modules_to_save.copies(model, whole, lambda key: finite(opened, key), resized)
    flat = {f"{path}.{leaf}": t for path, ls in tensors.items() for leaf, t in ls.items()}
    if (
        isinstance(file, Format)
        and not trainable
        and not own
        and not copies
        and file.is_identity(flat)
    ):
        found_text, allowed = "an adapter that changes nothing", "one that changes the output"
        raise FormatError(opened.path, "tensors", found_text, allowed, "unsafe")
    state = None
    if trainable and (found.folder / STATE).exists():
        state = safetensors.read(found.folder / STATE)
        config = state_config(model, config, state)
    try:
        # Without a state there is no network to train, and none is made, whatever its size.
        bare = isinstance(file, SoftPromptFormat) and state is None
        attach(model, file.bare(config) if bare else config, name=name, sized=True)  # type: ignore[union-attr]
        modules_to_save.attach(model, name, copies)
    except ConfigError as error:
        allowed = "an adapter of this model"
        at = found.folder / CONFIG
        raise FormatError(at, file.peft_type, error, allowed, "shape-mismatch") from None
    head.fill(model, name, own, heads)
    if state is not None:
        put_state(model, name, state, written(module_names, file, tensors), exported)
    elif isinstance(file, SoftPromptFormat):
        file.fill(known(model, name, "load_adapter").parts[name], tensors[""])
    else:
        changed = own_changes(model, name)
        for theirs in module_names.of(changed):
            file.fill(theirs, [changed[path] for path in theirs.ours], tensors[theirs.path])
    adapters = known(model, name, "load_adapter")
    adapters.configs[name], adapters.is_trainable[name] = config, trainable
    return len(contents.pictures)


def written(
    module_names: ModuleNames,
    file: Format | SoftPromptFormat,
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """The method's tensors by the keys that minift writes."""
    prefix = "" if isinstance(file, SoftPromptFormat) else PREFIX
    return {
        f"{prefix}{path}.{leaf}" if path else leaf: tensor
        for path, leaves in tensors.items()
        for leaf, tensor in leaves.items()
    }


def finite(file: TensorFile, key: str) -> Tensor:
    tensor = file.load(key)
    if not bool(tensor.isfinite().all()):
        raise FormatError(file.path, key, "NaN or infinity", "finite numbers", "out-of-range")
    return tensor


def change_problems(
    model: Transformer,
    module_names: ModuleNames,
    file: Format | SoftPromptFormat,
    config: Any,
    there: Mapping[str, Mapping[str, tuple[int, ...]]],
    found: Stored,
) -> list[str]:
    """The method's own tensors: exactly those, in their shapes, as the options say too."""
    if isinstance(file, SoftPromptFormat):
        wanted = file.shapes(model, config)
        usual = file.write(config, model)
        problems = [
            f"{key} is {found.data[key]} in {CONFIG}, not {usual[key]}"
            for key in file.size_keys
            if found.data.get(key) is not None and found.data[key] != usual[key]
        ]
        return problems + misfits(wanted, there.get("", {}))
    try:
        touched = file.touched(model, config)
    except ConfigError as error:
        raise FormatError(found.folder / CONFIG, file.peft_type, error, "an adapter of this model",
                          "shape-mismatch") from None  # fmt: skip
    needed = {
        f"{PREFIX}{theirs.path}.{leaf}": shape
        for theirs in module_names.of(touched)
        for leaf, shape in file.shapes(theirs, config).items()
    }
    return misfits(needed, {f"{PREFIX}{p}.{leaf}": s for p, ls in there.items()
                            for leaf, s in ls.items()})  # fmt: skip
