"""The subcommand `key`."""


def key() -> None:
    """Generate an API key and its hash for MASKSERVE_API_KEYS."""
    from models.console import Console
    from service.auth import generate_api_key

    api_key, key_hash = generate_api_key()
    console = Console()
    console.print(f"key   {api_key}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"hash  {key_hash}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        "Give the key to the caller, who sends it as `Authorization: Bearer KEY`; it is not stored. Set MASKSERVE_API_KEYS to\n"
        "the hash, after a comma if it has other hashes.",
        highlight=False, markup=False, style="dim", soft_wrap=True,
    )  # fmt: skip
