"""The lint report as JSON (`data lint --json`)."""

from typing import Any

from training.lint.findings import ADVICE, LintReport
from training.lint.label_noise import label_quality_json
from training.lint.stats import dataset_stats


def lint_json(report: LintReport) -> dict[str, Any]:
    """JSON-compatible: all findings by kind with the worst first, what was not read, and the statistics of `data stats`."""
    kinds = [
        {
            "level": level,
            "kind": kind,
            "advice": ADVICE[kind],
            "findings": [
                {
                    "detail": finding.detail,
                    "images": [str(report.datasets[split].pairs[index].image) for split, index in finding.locations],
                }
                for finding in findings
            ],
        }
        for level, kind, findings in report.findings_by_kind()
    ]
    result = {
        "errors": len(report.errors),
        "kinds": kinds,
        "not_read": report.not_read,
        **dataset_stats(report),
    }
    if report.label_quality:
        result["label_quality"] = label_quality_json(report, report.label_quality)
    return result
