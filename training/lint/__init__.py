"""The lint: finds problems in a data set before training starts.

`runner.py` reads the data set and runs the rules: `sample_rules.py` for one image and its mask, `dataset_rules.py` for all of them,
`duplicates.py` for images that occur twice. `findings.py` defines the result, `console.py` and `html_report.py` present it,
`stats.py` computes data set statistics.
"""

from training.data.scan.label_stats import LabelStats
from training.lint.console import lint_with_progress, print_lint_report
from training.lint.findings import Finding, LintReport
from training.lint.runner import lint

__all__ = ["Finding", "LabelStats", "LintReport", "lint", "lint_with_progress", "print_lint_report"]
