"""The subcommand `key`."""

from rich.console import Console


def key() -> None:
    """Make an API key, and the hash of it that MASKSERVE_API_KEYS takes."""
    from service.auth import generate_api_key

    made, hashed = generate_api_key()
    console = Console()
    console.print(f"key   {made}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"hash  {hashed}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        "Give the key to whoever calls, who sends it as `Authorization: Bearer KEY`; it is not kept here. Set the hash in\n"
        "MASKSERVE_API_KEYS, after a comma where there are others.",
        highlight=False, markup=False, style="dim", soft_wrap=True,
    )  # fmt: skip
