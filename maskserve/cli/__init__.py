"""The command line: one file per subcommand; `app.py` combines them."""
