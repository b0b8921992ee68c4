"""`python -m maskserve` is `maskserve`."""

from maskserve.cli import main

main()
