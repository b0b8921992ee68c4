"""Runs the command line as `python -m maskserve`."""

from maskserve.cli.app import main

main()
