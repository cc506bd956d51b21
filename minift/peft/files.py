"""Adapter folders as PEFT writes and reads them; bottlenecks, which it has not, as AdapterHub.

    adapter_config.json          the method and its options
    adapter_model.safetensors    tensors, by the names of the family that the base came from:
                                 `base_model.model.` + `model.layers.0.self_attn.q_proj` +
                                 `.lora_A.weight`; soft prompts: `prompt_embeddings`
    minift_state.safetensors     what only training needs, where the files above do not hold it
                                 (prompt encoders, pissa's start); other programs pass it over

Both are sorted, so the same adapter gives the same bytes. PEFT ignores a key that it does not
know and leaves a slot empty that it does not find; here both are refused, all of them at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from minift.checkpoints import safetensors, strict_json
from minift.checkpoints.save import as_json
from minift.errors import ConfigError, FormatError, one_line
from minift.model.heads import LabelHead
from minift.model.transformer import Transformer
from minift.peft import adapterhub, head
from minift.peft.adapters import (
    DEFAULT,
    active,
    check_new,
    config_of,
    kept_on_error,
    known,
    use,
)
from minift.peft.bottleneck import Bottleneck
from minift.peft.format import CONFIG, NEUTRAL, Format, Whole, misfits
from minift.peft.methods import METHODS, attach, method_of
from minift.peft.places import changes
from minift.peft.spelling import OLDER, Spelling
from minift.storage import write_folder

PREFIX = "base_model.model."
TENSORS = "adapter_model.safetensors"
STATE = "minift_state.safetensors"
FORMATS: dict[str, Format | Whole] = {
    module.FILE.peft_type: module.FILE for _, module in METHODS.values() if hasattr(module, "FILE")
}
LABELS = "labels"  # of a classifier: a key of the tensors' metadata, which PEFT passes over
TASKS = {"lm": "CAUSAL_LM", "label": "SEQ_CLS", "none": "FEATURE_EXTRACTION"}
AGREE = 1e-4  # how far the training state may be from the tensors that it led to, of the largest


# ---- writing -------------------------------------------------------------------------------------


def save_adapter(
    model: Transformer,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter, by default the active one, as a folder; whole or not at all."""
    chosen = active(model) if name is None else name
    if chosen is None:
        raise ConfigError("save_adapter: nothing is attached to the model")
    files = adapter_files(model, chosen)
    write_folder(path, files, overwrite=overwrite)


def adapter_files(model: Transformer, name: str) -> dict[str, Any]:
    known(model, name, "save_adapter")
    config = config_of(model, name)
    if isinstance(config, Bottleneck):
        return adapterhub.adapter_files(model, name)
    file = method_of(config).FILE
    options: dict[str, Any]
    if isinstance(file, Whole):
        options, prefix = file.write(config, model), "base_model."
    else:
        found, spelled = own_changes(model, name), Spelling(model)
        for path in found:
            if path not in spelled.by_ours:
                family = model.config.family
                raise ConfigError(f"save_adapter: {family} has no name for {path}")
        options, prefix = file.write(config, spelled, found), PREFIX
    own = head.to_file(model, name, prefix)
    tensors = {key: t.cpu().contiguous() for key, t in (exported(model, name) | own).items()}
    data = {
        "peft_type": file.peft_type,
        "task_type": TASKS.get(model.config.head),
        "base_model_name_or_path": model.source,
        "inference_mode": True,
        "modules_to_save": head.modules(model, name),
    }
    metadata = {"format": "pt"}
    if model.config.head == "label":
        metadata[LABELS] = json.dumps(list(model.config.labels), ensure_ascii=False)
    files: dict[str, Any] = {
        CONFIG: as_json(data | options),
        TENSORS: safetensors.encode(dict(sorted(tensors.items())), metadata),
    }
    state = training_state(model, name)
    if state:
        metadata = {"method": type(config).__name__, "config": json.dumps(asdict(config))}  # type: ignore[call-overload]
        files[STATE] = safetensors.encode(dict(sorted(state.items())), metadata)
    return files


def exported(model: Transformer, name: str) -> dict[str, Tensor]:
    """The method's own tensors, as its files have them."""
    file = method_of(config_of(model, name)).FILE
    out: dict[str, Tensor] = {}
    if isinstance(file, Whole):
        out = file.to_file(model, known(model, name, "save_adapter").parts[name])
    else:
        found, spelled = own_changes(model, name), Spelling(model)
        for theirs in spelled.of(found):
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
        if not isinstance(change, head.OwnHead) and not getattr(change, "tied", False)
    }


def training_state(model: Transformer, name: str) -> dict[str, Tensor]:
    """All tensors of an adapter whose files are not its parameters, by the path of each."""
    adapters = known(model, name, "save_adapter")
    state: dict[str, Tensor] = {}
    if name in adapters.parts and getattr(adapters.parts[name], "derived", False):
        part = adapters.parts[name].state_dict()
        state |= {f"part.{leaf}": tensor.detach().cpu() for leaf, tensor in part.items()}
    for path, _, change in changes(model, name):
        if getattr(change, "derived", False):
            leaves = change.state_dict().items()
            state |= {f"{path}.{leaf}": tensor.detach().cpu() for leaf, tensor in leaves}
    return state


# ---- reading -------------------------------------------------------------------------------------


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    """The adapter's folder: `path` itself, or the one inside a run's folder."""
    folder = Path(path)
    for candidate in (folder, folder / "adapter"):
        if os.path.exists(candidate / CONFIG):  # pathlib's raises for a name that is too long
            return candidate
    if not os.path.exists(folder):
        raise ConfigError(f'no adapter folder "{folder}" here')
    raise ConfigError(f'"{folder}" holds no adapter: neither it nor its adapter/ has {CONFIG}')


@dataclass(frozen=True)
class Stored:
    """What adapter_config.json says."""

    folder: Path
    data: Mapping[str, Any]
    file: Format | Whole
    base: str  # the model that it was trained on

    def config(self, spelled: Spelling | None = None) -> Any:
        """The method's config; with `spelled`, its targets as paths of that model."""
        path, data, file = self.folder / CONFIG, self.data, self.file
        problems = [
            f"{key} is {one_line(data[key])}, which minift does not have"
            for key, off in file.off.items()
            if key in data and not any(type(data[key]) is type(o) and data[key] == o for o in off)
        ]
        expected = {*file.off, *file.neutral, *file.options, *NEUTRAL}
        problems += [
            f"{key} is {one_line(value)}, an option that minift does not know"
            for key, value in data.items()
            if key not in expected and value not in (None, False, [], {})
        ]
        found, code = None, "unknown-field"
        try:
            if isinstance(file, Whole):
                found = file.read(data, problems)
            else:
                found = file.read(data, spelled, problems)
        except ConfigError as error:
            if not problems:
                code = "out-of-range"
            problems.append(str(error))
        if problems:
            count = f"{len(problems)} options that do not fit"
            allowed = f"what minift has of {file.peft_type}"
            raise FormatError(path, file.peft_type, count, allowed, code, problems)
        return found

    def opened(self) -> safetensors.SafetensorsFile:
        return safetensors.read(self.folder / TENSORS)

    @property
    def classifies(self) -> bool:
        return self.data.get("task_type") == TASKS["label"]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels; none where another program wrote the folder."""
        place = self.folder / TENSORS
        text = safetensors.read(place).metadata.get(LABELS) if self.classifies else None
        if text is None:
            return ()
        data = strict_json.parse(b'{"labels": %s}' % text.encode(), place, LABELS,
                                 limit_bytes=strict_json.CONFIG_LIMIT)  # fmt: skip
        names = data["labels"] if isinstance(data, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise FormatError(place, LABELS, one_line(text), "a list of names", "bad-type")
        return tuple(names)

    def summary(self) -> str:
        """The method in a few words, its targets in the family's."""
        targets = self.data.get("target_modules")
        where = f" on {', '.join(map(str, targets))}" if isinstance(targets, list) else ""
        return f"{str(self.config()).partition(' on ')[0]}{where}"


AnyStored = Stored | adapterhub.Stored


def stored(path: str | os.PathLike[str]) -> Stored | adapterhub.Stored:
    """Read an adapter folder's configuration. Raises FormatError for a method that is not here."""
    folder = adapter_folder(path)
    data = strict_json.read(folder / CONFIG)
    if adapterhub.is_hub(data):
        return adapterhub.Stored(folder, data)
    kind = data.get("peft_type")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise FormatError(folder / CONFIG, "peft_type", kind, ", ".join(FORMATS), "out-of-range")
    base = data.get("base_model_name_or_path")
    if type(base) is not str and base is not None:
        raise FormatError(folder / CONFIG, "base_model_name_or_path", base, "a text", "bad-type")
    return Stored(folder, data, FORMATS[kind], base or "")


def load_adapter(
    model: Transformer,
    path: str | os.PathLike[str],
    *,
    name: str = DEFAULT,
    trainable: bool = False,
) -> Transformer:
    """Attach an adapter of PEFT, AdapterHub or minift. Every tensor is used, every slot is filled.

    Raises FormatError with the whole list otherwise. With `trainable`, training may go on from it,
    prompt encoders and all; without, an adapter that would change nothing is refused.
    """
    check_new(model, name)
    found = stored(path)
    if isinstance(found, adapterhub.Stored):
        return adapterhub.load(model, found, name=name, trainable=trainable)
    check_labels(model, found)
    file, place = found.file, found.folder / TENSORS
    spelled = None if isinstance(file, Whole) else Spelling(model)
    config = said = found.config(spelled)
    opened = found.opened()
    tensors = {newer(key, opened.tensors): opened.load(key) for key in opened.tensors}
    prefix = "base_model." if isinstance(file, Whole) else PREFIX
    problems: list[str] = []
    check_base(model, spelled, tensors, place)
    promised = head.saved_whole(model, found.data, problems)
    if problems:
        raise FormatError(found.folder / CONFIG, "modules_to_save", "what does not fit",
                          "the model's label head", "unknown-field", problems)  # fmt: skip
    own = head.wanted(model, promised, tensors, prefix)
    going_on = None
    if trainable and (found.folder / STATE).exists():
        going_on = safetensors.read(found.folder / STATE)
        config = state_config(model, config, going_on)
    with kept_on_error(model, name):
        try:
            # Without a state there is no network to train, and none is made, whatever its size.
            bare = isinstance(file, Whole) and going_on is None
            attach(model, file.bare(config) if bare else config, name=name)  # type: ignore[union-attr]
        except ConfigError as error:
            allowed = "an adapter of this model"
            at = found.folder / CONFIG
            raise FormatError(at, file.peft_type, error, allowed, "shape-mismatch") from None
        put(model, name, file, spelled, said, tensors, own, place, trainable, going_on)
        if going_on is not None:
            put_state(model, name, going_on, {k: t for k, t in tensors.items() if k not in own})
        adapters = known(model, name, "load_adapter")
        adapters.configs[name], adapters.learns[name] = config, trainable
        return use(model, name)


def newer(key: str, there: Container[str]) -> str:
    """A tensor's name with its module called as transformers does now."""
    for old, new in OLDER.items():
        found = key.replace(f"{PREFIX}{old}.", f"{PREFIX}{new}.", 1)
        key = key if found in there else found
    return key


def check_base(
    model: Transformer, spelled: Spelling | None, tensors: dict[str, Tensor], place: Path
) -> None:
    """Take out the base's own embeddings and output matrix, which PEFT writes beside a change of
    either. They must be this model's: training may have resized or replaced them."""
    if spelled is None:
        return
    other, apart = [], isinstance(model.head, LabelHead)  # a label head is the adapter's own
    for key in [key for key in tensors if key.startswith(PREFIX)]:
        ours = spelled.weights.get(key.removeprefix(PREFIX).replace(".base_layer.", "."))
        if ours is None or not (ours == "embed.weight" or (ours.startswith("head.") and not apart)):
            continue
        own, tensor = model.get_parameter(ours), tensors.pop(key)
        if tensor.shape != own.shape or not torch.equal(tensor.to(own), own):
            other.append(f"{key} is not the base's")
    if other:
        count, allowed = f"{len(other)} that do not fit", "those of the base"
        raise FormatError(place, "embeddings", count, allowed, "shape-mismatch", other)


def check_labels(model: Transformer, found: Stored) -> None:
    """A classifier needs a model that has its labels."""
    if not found.classifies:
        return
    names, own = found.labels, model.config.labels
    if model.config.head != "label":
        shown = f" of {', '.join(names)}" if names else ""
        raise ConfigError(
            f"load_adapter: {found.folder} is a classifier{shown}, and the model has no head for "
            "labels; minift.with_labels gives it one"
        )
    if names and names != own:
        raise ConfigError(
            f"load_adapter: {found.folder} has the labels {', '.join(names)}, and the model "
            f"{', '.join(own)}"
        )


def put(
    model: Transformer,
    name: str,
    file: Format | Whole,
    spelled: Spelling | None,
    config: Any,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, str],
    place: Path,
    trainable: bool,
    state: safetensors.SafetensorsFile | None,
) -> None:
    """Fill what was attached from the file's tensors: exactly those, in their shapes."""
    wanted: dict[str, tuple[int, ...]] = {}
    found = own_changes(model, name)
    if isinstance(file, Whole):
        wanted = file.shapes(model, config)
    else:
        assert spelled is not None
        for theirs in spelled.of(found):
            wanted |= {
                f"{PREFIX}{theirs.path}.{leaf}": shape
                for leaf, shape in file.shapes(theirs, config).items()
            }
    rest = {key: tensor for key, tensor in tensors.items() if key not in own}
    problems = misfits(wanted, {key: tuple(tensor.shape) for key, tensor in rest.items()})
    problems += head.fill(model, name, own, tensors)
    if problems:
        count = f"{len(problems)} that do not fit"
        allowed = "the adapter's tensors for this model"
        raise FormatError(place, "tensors", count, allowed, "shape-mismatch", problems)
    bad = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise FormatError(place, bad[0], "NaN or infinity", "finite numbers", "out-of-range")
    if isinstance(file, Format) and not trainable and not own and file.idle(rest):
        found_text, allowed = "an adapter that changes nothing", "one that changes the output"
        raise FormatError(place, "tensors", found_text, allowed, "unsafe")
    if state is not None:
        return  # the parameters are in it, not here
    if isinstance(file, Whole):
        part = known(model, name, "load_adapter").parts[name]
        file.fill(part, rest)
    else:
        assert spelled is not None
        for theirs in spelled.of(found):
            parts = [found[path] for path in theirs.ours]
            at = f"{PREFIX}{theirs.path}."
            file.fill(
                theirs, parts, {leaf: rest[at + leaf] for leaf in file.shapes(theirs, config)}
            )


def state_config(model: Transformer, config: Any, state: safetensors.SafetensorsFile) -> Any:
    """The config that training had, which the exported one cannot tell (encoders, pissa)."""
    place, kind = state.path, type(config)
    text = state.metadata.get("config", "")
    data = strict_json.parse(text.encode(), place, "config", limit_bytes=strict_json.CONFIG_LIMIT)
    kinds = get_type_hints(kind)
    values = {key: tupled(value) for key, value in data.items()} if type(data) is dict else {}
    if (
        not values  # an older state may lack a newer field, which then has its default
        or not values.keys() <= kinds.keys()
        or not all(fits(value, kinds[key]) for key, value in values.items())
        or state.metadata.get("method") != kind.__name__
    ):
        raise FormatError(place, "config", text, f"the fields of {kind.__name__}", "unknown-field")
    try:
        trained = kind(**values)
    except ConfigError as error:
        raise FormatError(place, "config", error, kind.__name__, "out-of-range") from None
    # Before anything is made: no network larger than what the file holds.
    there = sum(math.prod(entry.shape) for entry in state.tensors.values())
    method = method_of(trained)
    if isinstance(method.FILE, Whole) and method.count(model, trained) != there:
        wanted = f"{method.count(model, trained):,} numbers"
        raise FormatError(place, "tensors", f"{there:,} numbers", wanted, "shape-mismatch")
    return trained


def tupled(value: Any) -> Any:
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from a file is of a field's type: int, float, str, bool, tuples of them."""
    if get_origin(kind) is not tuple:
        return type(value) is kind or (kind is float and type(value) is int)
    inner = get_args(kind)
    if inner[-1] is Ellipsis and type(value) is tuple:
        inner = (inner[0],) * len(value)
    return type(value) is tuple and len(value) == len(inner) and all(map(fits, value, inner))


def put_state(
    model: Transformer,
    name: str,
    state: safetensors.SafetensorsFile,
    tensors: Mapping[str, Tensor],
) -> None:
    """Fill the training state, which must lead to the tensors that were exported with it."""
    wanted = {key: tuple(tensor.shape) for key, tensor in training_state(model, name).items()}
    problems = misfits(wanted, {key: entry.shape for key, entry in state.tensors.items()})
    if problems:
        count = f"{len(problems)} that do not fit"
        raise FormatError(state.path, "tensors", count, "the method's own", "shape-mismatch",
                          problems)  # fmt: skip
    modules: dict[str, nn.Module] = {path: change for path, _, change in changes(model, name)}
    adapters = known(model, name, "load_adapter")
    if name in adapters.parts:
        modules["part"] = adapters.parts[name]
    for path, module in modules.items():
        own = {leaf: f"{path}.{leaf}" for leaf in module.state_dict()}
        if all(key in state.tensors for key in own.values()):
            module.load_state_dict({leaf: state.load(key) for leaf, key in own.items()})
    again = {key: tensor.cpu() for key, tensor in exported(model, name).items()}
    for key, tensor in tensors.items():
        limit = AGREE * max(float(tensor.abs().max()), 1e-6)
        near = (
            key in again
            and again[key].shape == tensor.shape
            and float((again[key] - tensor).abs().max()) <= limit  # false for NaN
        )
        if not near:
            found, allowed = f"a state that leads elsewhere than {key}", f"that of {TENSORS}"
            raise FormatError(state.path, "tensors", found, allowed, "shape-mismatch")
