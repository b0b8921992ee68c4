"""`--help` of the benchmarks that take no options."""

import sys


def print_help_if_requested(text: str | None) -> None:
    """Print `text` and exit if the command line has `-h` or `--help`, instead of a benchmark of half an hour."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(text)
        sys.exit(0)
