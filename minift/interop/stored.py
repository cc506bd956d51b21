"""An adapter's folder before it meets a model: its configuration, its tensor file, its labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minift.checkpoints.hub import cache
from minift.checkpoints.open import TensorFile, is_hub_name, model_of_run
from minift.checkpoints.tokenizers import CONFIG_LIMIT
from minift.errors import ConfigError, FormatError, one_line
from minift.formats import safetensors, strict_json, torch_zip
from minift.formats.overwrite import ADAPTER_FOLDER, METRICS
from minift.interop import adalora, adapterhub
from minift.interop.methods import BY_TYPE
from minift.interop.module_names import ModuleNames
from minift.interop.peft_format import CONFIG, IGNORED, Format, Shapes, SoftPromptFormat
from minift.peft.names import summarize_targets
from minift.tokenizers import text_format

TENSORS = "adapter_model.safetensors"
OLDER_TENSORS = "adapter_model.bin"  # PEFT's until 0.6, and later on demand
LABELS = "labels"  # of a classifier: a key of the tensors' metadata, which PEFT passes over
TASKS = {"lm": "CAUSAL_LM", "label": "SEQ_CLS", "none": "FEATURE_EXTRACTION"}
ELSEWHERE = {  # tasks whose models minift does not have
    "TOKEN_CLS": "a label for every token",
    "QUESTION_ANS": "answers that are marked in a text",
    "SEQ_2_SEQ_LM": "an encoder with a decoder",
}


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    """The adapter's folder: `path` itself, the one inside a run's folder, or that of `org/name`."""
    folder = Path(path)
    for candidate in (folder, folder / ADAPTER_FOLDER):
        if os.path.exists(candidate / CONFIG):  # pathlib's raises for a name that is too long
            return candidate
    if (model := model_of_run(folder)) is not None:
        raise ConfigError(f'"{folder}" is a run that trained no adapter: its model is {model}')
    if os.path.exists(folder / METRICS):
        raise ConfigError(f'"{one_line(str(folder), 200)}": unfinished run, no adapter saved')
    if os.path.exists(folder):
        raise ConfigError(f'"{folder}" holds no adapter: neither it nor its adapter/ has {CONFIG}')
    text = one_line(str(path), 200)
    if not is_hub_name(str(path)):
        raise ConfigError(f'no adapter folder "{text}" here')
    found = cache.cached(str(path))
    if found is None:
        where = cache.cache_dir()
        raise ConfigError(
            f'no adapter folder "{text}" here, nor whole in {where}: minift download {text}'
        )
    if not (found / CONFIG).exists():
        raise ConfigError(f"{text} is no adapter: it has no {CONFIG}")
    return found


@dataclass(frozen=True)
class Stored:
    """What adapter_config.json says."""

    folder: Path
    data: Mapping[str, Any]
    file: Format | SoftPromptFormat
    base: str  # the model that it was trained on, as minift.load takes it

    def config(self, module_names: ModuleNames | None = None, there: Shapes | None = None) -> Any:
        """The method's config; with `module_names` and what lies in the file, its targets as
        paths of that model."""
        path, data, file = self.folder / CONFIG, self.data, self.file
        problems = [
            f"{key} is {one_line(data[key])}, which minift does not have"
            for key, off in file.unsupported.items()
            if key in data and not any(type(data[key]) is type(o) and data[key] == o for o in off)
        ]
        task = data.get("task_type")
        if isinstance(task, str) and task in ELSEWHERE:
            problems.append(f"task_type is {task}: {ELSEWHERE[task]}, which minift does not have")
        saved = data.get("modules_to_save")
        if saved is not None and not (
            type(saved) is list and all(type(name) is str for name in saved)
        ):
            problems.append(f"modules_to_save is {one_line(saved)}, not a list of module names")
        expected = {*file.unsupported, *file.ignored, *file.options, *IGNORED}
        problems += [
            f"{key} is {one_line(value)}, an option that minift does not know"
            for key, value in data.items()
            if key not in expected and value not in (None, False, [], {})
        ]
        found, code = None, "unknown-field"
        try:
            if isinstance(file, SoftPromptFormat):
                found = file.read(data, problems)
            else:
                found = file.read(data, module_names, there or {}, problems)
        except ConfigError as error:
            if not problems:
                code = "out-of-range"
            problems.append(str(error))
        if problems:
            many = len(problems) > 1
            count = (
                f"{len(problems)} option{'s' if many else ''} that do{'' if many else 'es'} not fit"
            )
            allowed = f"what minift has of {file.peft_type}"
            raise FormatError(path, file.peft_type, count, allowed, code, problems)
        return found

    def opened(self) -> TensorFile:
        return self.tensors

    @cached_property
    def tensors(self) -> TensorFile:
        """Its tensor file, an AdaLoRA's as the LoRA that it is."""
        file = tensor_file(self.folder)
        return adalora.AsLoRA(file) if self.data["peft_type"] == adalora.TYPE else file

    @property
    def classifies(self) -> bool:
        """By its task, or, where none is noted, its class, or a head that is in the file."""
        task, mapping = self.data.get("task_type"), self.data.get("auto_mapping")
        if task is None:
            named = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
            return named.endswith("ForSequenceClassification") if named else (
                isinstance(self.file, Format) and label_rows(self.tensors) > 0
            )  # fmt: skip
        return bool(task == TASKS["label"])

    @property
    def names_labels(self) -> bool:
        return LABELS in getattr(self.tensors, "metadata", {})

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels: its own, else LABEL_0 and so on, as many as its head
        has rows; none where the file holds no head."""
        if not self.classifies:
            return ()
        file = self.tensors
        if self.names_labels:
            text = file.metadata[LABELS]  # type: ignore[attr-defined]
            names = strict_json.parse(
                text.encode(), file.path, LABELS, limit_bytes=strict_json.CONFIG_LIMIT
            )
            if type(names) is not list or not names or not all(type(n) is str for n in names):
                raise FormatError(file.path, LABELS, one_line(text), "a list of names", "bad-type")
            return tuple(names)
        return tuple(f"LABEL_{i}" for i in range(label_rows(file)))

    def summary(self) -> str:
        """The method in a few words, its targets in the family's."""
        targets = self.data.get("target_modules")
        names = [str(target) for target in targets] if isinstance(targets, list) else []
        where = f" on {summarize_targets(names)}" if names else ""
        return f"{str(self.config()).partition(' on ')[0]}{where}"


def tensor_file(folder: Path) -> TensorFile:
    """Where both kinds are there, the one that PEFT takes too."""
    older = folder / OLDER_TENSORS
    if not os.path.exists(folder / TENSORS) and os.path.exists(older):
        return torch_zip.read(older)
    return safetensors.read(folder / TENSORS)


HEADS = ("classifier", "score", "out_proj")


def label_rows(file: TensorFile) -> int:
    """How many labels the head in an adapter's file scores; 0 where there is none."""
    for key, entry in file.tensors.items():
        words = [w for w in key.split(".") if w not in ("modules_to_save", "default")]
        if words[:1] != ["base_model"]:
            continue
        if words[-1] == "weight" and words[-2:-1] and words[-2] in HEADS and len(entry.shape) == 2:
            if words[-2] == "out_proj" and words[-3:-2] != ["classifier"]:
                continue
            if "original_module" not in words and "lora_A" not in words and "lora_B" not in words:
                return entry.shape[0]
    return 0


AnyStored = Stored | adapterhub.Stored


def stored(path: str | os.PathLike[str]) -> AnyStored:
    """Read an adapter folder's configuration. Raises FormatError for a method that is not here."""
    folder = adapter_folder(path)
    data = strict_json.read(folder / CONFIG)
    if adapterhub.is_hub(data):
        return adapterhub.Stored(folder, data)
    kind = data.get("peft_type")
    if kind == adalora.TYPE:
        kind, data = "LORA", adalora.options(data, tensor_file(folder))
    if not isinstance(kind, str) or kind not in BY_TYPE:
        found = kind if "peft_type" in data else "no such key: PEFT did not write this file"
        raise FormatError(folder / CONFIG, "peft_type", found, ", ".join(BY_TYPE), "out-of-range")
    base = data.get("base_model_name_or_path")
    if type(base) is not str and base is not None:
        raise FormatError(folder / CONFIG, "base_model_name_or_path", base, "a text", "bad-type")
    return Stored(folder, data, BY_TYPE[kind], own_base(folder) or base or "")


def own_base(folder: Path) -> str | None:
    """The base by the name that minift was given; PEFT's file has the one that PEFT resolves."""
    path = folder / text_format.FILE
    if not os.path.exists(path):
        return None
    base = strict_json.read(path, limit_bytes=CONFIG_LIMIT).get("base")
    if base is not None and (type(base) is not str or not base):
        raise FormatError(path, "base", base, "the name of a model", "bad-type")
    return base
