"""Labels by name first, by index only where no name is a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from minift.data.labels import allowed_labels, checked_labels, label_index
from minift.data.read import open_records
from minift.errors import DataError

STARS = ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("text", "labels", "index"),
    [
        ("good", ("bad", "good"), 1),
        (" good ", ("bad", "good"), 1),
        ("1", ("bad", "good"), 1),
        ("1.0", ("bad", "good"), 1),  # pandas writes whole numbers so beside an empty cell
        ("2", ("bad", "good"), None),
        ("Good", ("bad", "good"), None),
        ("0", STARS, None),
        ("1", STARS, 0),
        ("5.0", STARS, 4),
        ("1", ("0", "2", "5"), None),
        ("1", ("1.0", "2.0"), 0),
        ("0.5", ("bad", "good"), None),
        ("-1", ("bad", "good"), None),
        ("0", ("-1", "1"), None),
        ("0", ("bad", "1"), None),
        ("²", ("bad", "good"), None),
        ("", ("bad", "good"), None),
    ],
)
def test_which_label_a_value_means(text: str, labels: tuple[str, ...], index: int | None) -> None:
    assert label_index(text, labels) == index


def test_an_error_offers_indices_only_where_they_are_read() -> None:
    assert allowed_labels(checked_labels(["bad", "good"])) == "bad, good or 0 to 1"
    assert allowed_labels(STARS) == "1, 2, 3, 4, 5"


@pytest.mark.parametrize("slip", [0, "0", 6, 1.5])
def test_a_file_and_a_list_refuse_the_same_slip(tmp_path: Path, slip: object) -> None:
    rows = [{"text": "fine", "label": 5}, {"text": "bad", "label": 1}, {"text": "a", "label": slip}]
    path = tmp_path / "stars.csv"
    path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    options = {"template": "{text}", "target": "label", "labels": STARS}
    for data, where in ((path, "line 4"), (rows, "row 3")):
        with pytest.raises(DataError, match=rf'{where}, field "label".*not in --labels, allowed 1'):
            open_records(data, **options)  # type: ignore[arg-type]
        good = open_records(data, limit=2, **options)  # type: ignore[arg-type]
        assert [good.label_index(i) for i in range(2)] == [4, 0]
