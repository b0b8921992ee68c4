"""What is wrong with a data set, found before epoch 0.

`check.py` reads it and asks the rules: `pairs.py` about one image and its mask, `whole.py` about all of them, `twins.py` about
images that are there twice. `report.py` is what they found, `show.py` and `page.py` tell it, `stats.py` tells what is there.
"""

from training.data.scan.label_stats import LabelStats
from training.lint.console import lint_with_progress, print_lint_report
from training.lint.findings import Finding, LintReport
from training.lint.runner import lint

__all__ = ["Finding", "LabelStats", "LintReport", "lint", "lint_with_progress", "print_lint_report"]
