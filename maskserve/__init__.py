"""maskserve: `maskserve.client` is the HTTP client, `maskserve.cli` the command line, `maskserve.predict` batch prediction."""
