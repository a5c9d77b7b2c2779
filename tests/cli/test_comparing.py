"""Several questions side by side, from the summaries of their runs."""

import csv
from pathlib import Path
from typing import Any

from funcexplain.commands.comparing import compare


def summary(folder: Path, label: str, **more: Any) -> dict[str, Any]:
    answer = {
        "date": "2026-10-30", "status": "CLOSEST", "error": 0.0005, "size": 2.5, "main_asset": "OIL",
        "today": {"OIL": 0.25, "RICE": 0.75}, "weights": {"OIL": 0.5, "RICE": 0.5},
    }  # fmt: skip
    return {
        "question": f"What about {label}?", "folder": str(folder / label), "exit_code": 0,
        "files": ["report.html"], "answers": [answer | more], "dates": 1, "dates_hit": 1,
    }  # fmt: skip


def test_a_page_shows_questions_side_by_side(tmp_path: Path) -> None:
    lost = {"OIL": None, "RICE": None}
    summaries = {
        "oil": summary(tmp_path, "oil", probability={"estimate": 0.031}),
        "rice": summary(tmp_path, "rice", status="STALLED", error=0.04),
        "lost": summary(tmp_path, "lost", status="FAILED", error=None, size=None, weights=lost),
        "held": summary(tmp_path, "held", main_asset=None, size=0.0),
    }
    summaries["held"] |= {"dates": 3, "dates_hit": 2}
    printed: list[str] = []
    found = compare(summaries, tmp_path, printed.append)
    assert found["files"] == [str(tmp_path / name) for name in ("compare.csv", "compare.html")]
    with (tmp_path / "compare.csv").open() as file:
        first, *_, last = csv.DictReader(file)
    assert (first["main_asset"], first["turnover"], first["probability"]) == ("OIL", "0.25", "0.031")
    assert last["main_asset"] == ""
    text = (tmp_path / "compare.html").read_text()
    assert '<a href="oil/report.html">oil</a>: What about oil?' in text
    for cells in (
        ("oil", "2026-10-30", "reached", "3.10%", "2.50", "OIL", "25.00%"),
        ("rice", "2026-10-30", "missed by 4.00 percentage points", "", "2.50", "OIL", "25.00%"),
        ("lost", "2026-10-30", "no answer", "", "", "OIL", ""),
        ("held", "2026-10-30", "held already (on 2 of 3 dates)", "", "0.00", "", "25.00%"),
        ("OIL", "25.00%", "50.00%", "50.00%", "", "50.00%"),
    ):
        assert "".join(cells) in text.replace('<td class="number">', "<td>").replace("<td>", "").replace(
            "</td>", ""
        )


def test_without_reports_there_is_no_page(tmp_path: Path) -> None:
    summaries = {label: summary(tmp_path, label) | {"files": []} for label in ("a", "b")}
    found = compare(summaries, tmp_path, lambda line: None)
    assert found["files"] == [str(tmp_path / "compare.csv")]
