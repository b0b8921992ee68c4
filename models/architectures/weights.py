"""Files of weights: read without running anything that stands in them, fetched where there is a network."""

import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import WeightsError

TIMEOUT = 10  # seconds that a host may take to answer before it counts as out of reach


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name: safetensors, or what `torch.save` wrote and torch reads without pickle.

    A dict under `state_dict`, `model` or `model_state` is looked into, as training scripts save them.
    Raises: WeightsError where the file is neither, or would have to run code to be read.
    """
    if not file.is_file():
        raise WeightsError(f"{file} is not there; wanted is a file of weights.")
    try:
        if file.suffix == ".safetensors":
            return load_file(file, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{file} is no safetensors file, or it is damaged ({error}).") from error
    except Exception as error:  # torch's unpickler raises whatever it meets in a strange file
        raise WeightsError(_refusal(file, error)) from error
    for key in ("state_dict", "model_state_dict", "model_state", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = _tensors(content)
    if not tensors:
        raise WeightsError(
            f"{file} holds no tensors by name; wanted is what `torch.save(model.state_dict(), FILE)` writes."
        )
    return tensors


def fetched(url: str, what: str, option: str = "weights=") -> Path:
    """The file of a URL in torch's cache, downloaded if it is not there.

    Raises: WeightsError that names the file to fetch, and the `option` that takes it.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        _require(url, what, option)
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = target.stem.rpartition("-")[2]  # torchvision's names end in the first digits of the sha256
        try:
            torch.hub.download_url_to_file(url, str(target), hash_prefix=prefix, progress=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(_unfetched(url, what, option, error)) from error
    return target


def from_hub(repository: str, name: str, revision: str, what: str) -> Path:
    """A file of the Hugging Face hub in its cache, downloaded if it is not there. Raises: WeightsError."""
    import huggingface_hub

    kept = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(kept, str):
        return Path(kept)
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
    _require(url, what, "weights=")  # the hub's own client tries for most of a minute before it says so
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # its errors are those of several libraries
        raise WeightsError(_unfetched(url, what, "weights=", error)) from error


def _require(url: str, what: str, option: str) -> None:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "maskserve"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except (urllib.error.URLError, TimeoutError) as error:
        raise WeightsError(_unfetched(url, what, option, error)) from error


def _unfetched(url: str, what: str, option: str, error: Exception) -> str:
    reason = str(getattr(error, "reason", error)).splitlines()[0]
    return f"The {what} cannot be fetched ({reason}). Fetch {url} where there is a network, and name the file: {option}FILE."


def _refusal(file: Path, error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Unsupported" in text or "GLOBAL" in text:
        return (
            f"{file} holds more than tensors: reading it would run code from it, which maskserve never does. Convert it "
            "where you trust it: torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW)."
        )
    return f"{file} is no file of weights that torch or safetensors reads ({text.splitlines()[0] if text else 'it is empty'})."


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
