"""maskserve: the front door. `maskserve.client` is the HTTP client; `maskserve.cli` the commands."""
