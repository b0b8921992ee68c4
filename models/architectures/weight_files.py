"""Files of weights: read without running anything that stands in them, fetched where there is a network."""

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

from models.errors import WeightsError, first_line

TIMEOUT = 10  # seconds that a host may take to answer before it counts as out of reach


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name: safetensors, or what `torch.save` wrote and torch reads without pickle.

    What a file is tells its beginning, not its name. A dict under `state_dict` or `model` is looked into, as training
    scripts save them.
    Raises: WeightsError where the file is neither, or would have to run code to be read.
    """
    if not file.is_file():
        raise WeightsError(f"{file} is {'a folder' if file.is_dir() else 'not there'}; wanted is a file of weights.")
    with file.open("rb") as stream:
        beginning = stream.read(9)
    if beginning[8:] == b"{":  # the length of safetensors' header, and the header
        try:
            return load_file(file, device="cpu")
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{file} is a safetensors file that is damaged ({error}).") from error
    if not beginning.startswith((b"PK", b"\x80")):  # a zip archive as torch writes it, or a pickle as it used to
        raise WeightsError(f"{file} is no file of weights: it is neither safetensors nor what torch.save writes.")
    return _find_state_dict(file, _torch_load(file))


def _torch_load(file: Path) -> Any:
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise WeightsError(
                        f"{file} is a compressed archive, as torch never writes; save the weights again."
                    )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with file.open("rb") as stream:  # given a name, torch goes by its ending
                return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" not in str(error):  # torch's words for what its reader of plain values refuses
            raise WeightsError(f"{file} is damaged: {first_line(error)}") from error
        raise WeightsError(
            f"{file} holds more than tensors: reading it would run code from it, which maskserve never does. Where you "
            "trust it, convert it: content = torch.load(FILE, weights_only=False), then torch.save(content.state_dict(), NEW), "
            "or torch.save(content['state_dict'], NEW) of a checkpoint."
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # torch raises whatever it meets in a broken file
        raise WeightsError(f"{file} is damaged, or no file of weights: {first_line(error)}") from error


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
            f"{file} holds no tensors by name; wanted is what `torch.save(model.state_dict(), FILE)` writes."
        )
    return tensors


def unknown_weights_error(weights: str, of: str, known: list[str]) -> WeightsError:
    """The error for `weights=` with a word that is neither a file nor one of the names `known` for `of`."""
    return WeightsError(
        f"The weights {weights!r} are no file, no bundle, and not known for {of}, which has {', '.join(known)}."
    )


def fetch_weights(url: str, what: str, option: str = "weights=") -> Path:
    """The file of a URL in torch's cache, downloaded if it is not there.

    Raises: WeightsError that names the file to fetch, and the `option` that takes it.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        _check_reachable(url, what, option)
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = target.stem.rpartition("-")[2]  # torchvision's names end in the first digits of the sha256
        try:
            torch.hub.download_url_to_file(url, str(target), hash_prefix=prefix, progress=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(_fetch_error_message(url, what, option, error)) from error
    return target


def fetch_from_hub(repository: str, name: str, revision: str, what: str) -> Path:
    """A file of the Hugging Face hub in its cache, downloaded if it is not there. Raises: WeightsError."""
    import huggingface_hub

    kept = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(kept, str):
        return Path(kept)
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
    _check_reachable(url, what, "weights=")  # the hub's own client tries for most of a minute before it says so
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # its errors are those of several libraries
        raise WeightsError(_fetch_error_message(url, what, "weights=", error)) from error


def _check_reachable(url: str, what: str, option: str) -> None:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "maskserve"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except (urllib.error.URLError, TimeoutError) as error:
        raise WeightsError(_fetch_error_message(url, what, option, error)) from error


def _fetch_error_message(url: str, what: str, option: str, error: Exception) -> str:
    reason = first_line(getattr(error, "reason", error))
    return f"The {what} cannot be fetched ({reason}). Fetch {url} where there is a network, and name the file: {option}FILE."
