"""The command line: a file for each subcommand. `app.py` puts them together."""
