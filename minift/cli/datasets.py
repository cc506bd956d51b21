"""Open the data set that the options name, as text for a language model or for a classifier."""

from __future__ import annotations

from collections.abc import Callable

from minift.cli.options import Parsed
from minift.data.read import Records, open_records, unescape_template
from minift.data.split import Rows, fewest_held_out, held_out
from minift.errors import ConfigError, notice, one_line
from minift.tokenizers.text_format import TextFormat
from minift.train.objectives.classification import LABEL, TEXT


def open_prompts(parsed: Parsed, path: str, texts: TextFormat | None = None) -> Records:
    """Open a data file of prompts as the options say, else by the template of training."""
    template, target = parsed.flag("template"), parsed.flag("target")
    if template is not None:
        template = unescape_template(template)
    labels: tuple[str, ...] | None = parsed.flag("labels")

    def open_as(
        template: str | None, target: str | None, labels: tuple[str, ...] | None
    ) -> Records:
        return open_records(
            path, template=template, target=target, labels=labels,
            limit=parsed.flag("limit"), documents=parsed.flag("documents"),
        )  # fmt: skip

    if texts is None or not texts.template or (template is not None and target is not None):
        return open_as(template, target, labels)
    try:
        found = open_as(
            template or texts.template, target or texts.target, labels or texts.labels or None
        )
    except ConfigError:  # another kind of data, which says itself how it is to be read
        return open_as(template, target, labels)
    if template is None:
        shown = one_line(texts.template.replace("\n", "\\n"), 200)
        line = f"is read by the template of training, '{shown}'; --template names another"
        notice(path, line)
    return found


def open_labelled_texts(
    parsed: Parsed, labels: tuple[str, ...], texts: TextFormat, path: str
) -> Records:
    """Open a table of texts and labels: by the options, else by the template of training."""
    template, target, pair = (parsed.flag(name) for name in ("template", "target", "pair"))
    if pair is None and template is None:
        pair = texts.pair
    return open_records(
        path,
        template=texts.template or TEXT if template is None else unescape_template(template),
        target=target or texts.target or LABEL,
        labels=labels,
        pair=unescape_template(pair) if pair is not None else None,
        limit=parsed.flag("limit"),
    )


def train_and_held_out(
    parsed: Parsed, read: Callable[[str], Records], seed: int
) -> tuple[Records | Rows, Records | Rows | None]:
    """The rows to train on and the held-out rows: of --held-out, or a share of --data."""
    records, share = read(parsed.need("data")), parsed.flag("held_out_share")
    if parsed.flag("held_out") is not None:
        return records, read(parsed.flag("held_out"))
    if share > 0 and len(records) > 1:
        fewest = 1 if "held_out_share" in parsed.given else fewest_held_out(len(records))
        return held_out(records, share, seed, fewest=fewest)
    return records, None
