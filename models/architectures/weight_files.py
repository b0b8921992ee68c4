"""Weights files: reads them without running code from them, and downloads pretrained ones."""

import pickle
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.errors import WeightsError, first_line, quoted

TIMEOUT = 10  # seconds until a host that does not respond counts as unreachable


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Formats: safetensors, and files of `torch.save` that torch reads with `weights_only=True`. The first bytes of the
    file decide which, not its name. The tensors may be in a dict under `state_dict` or `model`, as training scripts
    save them.
    Raises: WeightsError for a missing, damaged or other file, and for one that would have to run code to be read.
    """
    if not file.is_file():
        raise WeightsError(f"{file} {'is a folder' if file.is_dir() else 'does not exist'}; name a weights file.")
    with file.open("rb") as stream:
        beginning = stream.read(9)
    if beginning[8:] == b"{":  # safetensors: 8 bytes of length, then the JSON header
        try:
            return load_file(file, device="cpu")
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{file} is a damaged safetensors file ({error}); fetch or save it again.") from error
    if not beginning.startswith((b"PK", b"\x80")):  # the zip archive that torch writes, or the pickle of old versions
        raise WeightsError(
            f"{file} is not a weights file: expected safetensors, or a file that `torch.save(model.state_dict(), FILE)` writes."
        )
    return _find_state_dict(file, _torch_load(file))


def _torch_load(file: Path) -> Any:
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise WeightsError(
                        f"{file} is a compressed archive, which torch never writes; save the weights again."
                    )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with file.open("rb") as stream:  # with a path, torch would look at its suffix
                return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" not in str(error):  # torch's message for objects that `weights_only` rejects
            raise WeightsError(f"{file} is damaged: {first_line(error)}") from error
        raise WeightsError(
            f"{file} holds more than tensors: reading it would run code from it, which maskserve never does. If you trust "
            "the file, convert it: content = torch.load(FILE, weights_only=False), then torch.save(content.state_dict(), NEW), "
            "or torch.save(content['state_dict'], NEW) for a checkpoint."
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # torch raises exceptions of many types for a damaged file
        raise WeightsError(f"{file} is damaged, or not a weights file: {first_line(error)}") from error


def _find_state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model_state", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{file} holds no tensors by name; expected the content of `torch.save(model.state_dict(), FILE)`."
        )
    return tensors


def unknown_weights_error(weights: str, owner: str, known: list[str]) -> WeightsError:
    """The error for a value of `weights=` that is neither a file nor one of the names `known` for `owner`."""
    return WeightsError(
        f"The weights {quoted(weights)} are neither a file or bundle nor known for {owner}; choose from {', '.join(known)}."
    )


def fetch_weights(url: str, description: str, option: str = "weights=") -> Path:
    """The file of a URL in torch's cache, downloaded if it is not there.

    Raises: WeightsError with the URL to download, and the `option` to pass the file with.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        _check_reachable(url, description, option)
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = target.stem.rpartition("-")[2]  # torchvision's file names end in the first digits of the sha256
        try:
            torch.hub.download_url_to_file(url, str(target), hash_prefix=prefix, progress=True)
        except (OSError, RuntimeError) as error:
            raise _fetch_error(url, description, option, error) from error
    return target


def fetch_from_hub(repository: str, name: str, revision: str, description: str) -> Path:
    """A file of the Hugging Face hub in its cache, downloaded if it is not there. Raises: WeightsError."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
    _check_reachable(url, description, "weights=")  # the hub's client retries for most of a minute before it fails
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # the client raises exceptions of several libraries
        raise _fetch_error(url, description, "weights=", error) from error


def _check_reachable(url: str, description: str, option: str) -> None:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "maskserve"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except (urllib.error.URLError, TimeoutError) as error:
        raise _fetch_error(url, description, option, error) from error


def _fetch_error(url: str, description: str, option: str, error: Exception) -> WeightsError:
    reason = first_line(getattr(error, "reason", error))
    return WeightsError(
        f"Cannot download the {description} ({reason}). Download {url} on a machine with internet access and pass the "
        f"file: {option}FILE."
    )
