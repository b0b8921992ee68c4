"""`python -m maskserve` is `maskserve`."""

from maskserve.cli.app import main

main()
