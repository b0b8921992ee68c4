"""What is wrong with a data set, found before epoch 0.

`check.py` reads it and asks the rules: `pairs.py` about one picture and its mask, `whole.py` about all of them, `twins.py` about
pictures that are there twice. `report.py` is what they found, `show.py` and `page.py` tell it, `stats.py` tells what is there.
"""

from training.lint.console import show, watched
from training.lint.findings import Finding, Measure, Report
from training.lint.runner import lint

__all__ = ["Finding", "Measure", "Report", "lint", "show", "watched"]
