"""docs/explain.md names every view and every threshold, and every view has a template."""

from pathlib import Path

from models.explain.thresholds import THRESHOLDS
from training.explain import VIEWS
from training.explain.page import TEMPLATE_FOLDER

PAGE = (Path(__file__).parents[3] / "docs" / "explain.md").read_text(encoding="utf-8")


def test_every_view_is_documented_and_has_a_template() -> None:
    for view in VIEWS:
        assert f"| `{view}` |" in PAGE and (TEMPLATE_FOLDER / f"{view}.html").is_file(), view


def test_every_threshold_is_documented_with_healthy_values() -> None:
    for kind, threshold in THRESHOLDS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {kind} |"))
        _, measured, limit, *healthy = (cell.strip() for cell in row.strip("|").split("|"))
        assert (
            measured == threshold.meaning and limit == f"{'above' if threshold.above else 'below'} {threshold.limit:g}"
        )
        assert not any(threshold.crossed_by(float(value)) for value in healthy), kind
