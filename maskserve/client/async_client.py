"""The client's methods, written once: AsyncClient has them as coroutines, Client as blocking calls."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
import numpy as np

from maskserve.client import responses
from maskserve.client.connection import Connection
from maskserve.client.errors import ServiceError
from maskserve.client.image_encoding import ImageLike, to_request_body
from maskserve.client.mask import Mask
from maskserve.client.recording_encoding import RecordingLike, is_recording, to_recording_body
from maskserve.client.signal_mask import SignalMask
from maskserve.client.transports import AsyncTransport, Transport
from maskserve.client.volume_encoding import VolumeLike, is_volume, to_volume_body
from maskserve.client.volume_mask import VolumeMask

DEFAULT_RETRY_TIMEOUT = 30.0  # seconds: three times as long as the service lets a request queue before it returns 429

# The service's defaults; a parameter that equals its default is not sent. The default format depends on the model.
DEFAULT_PARAMS = {
    "format": None, "model": None, "classes": "", "min_confidence": 0, "min_area": 0, "alpha": 0.5, "masks": "rle",
    "simplify": 0, "confidence": False, "bands": "",
    "lead": "", "rate": None, "trace": False,
}  # fmt: skip


class AsyncClient:
    """A client of one service, for one asyncio event loop. Use it as an async context manager, or close it."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retry_timeout: float = DEFAULT_RETRY_TIMEOUT,
        background: bool = False, transport: Callable[..., Transport] = AsyncTransport,
    ) -> None:  # fmt: skip
        """Same parameters as Client; `transport` sends the requests, and is SyncTransport in Client. Raises: ValueError."""
        self._connection = Connection(url, api_key, timeout, retry_timeout, transport)
        self._headers = {"Prefer": "respond-async"} if background else {}
        self._run_blocking = self._connection.transport.run_blocking
        self._classes_by_model: dict[str, list[dict[str, Any]]] = {}  # the key is the value of X-Model
        self.url = self._connection.url

    async def segment(
        self, image: ImageLike, *, model: str | None = None, classes: Sequence[str] = (), min_confidence: float = 0.0,
        min_area: int = 0, confidence: bool = False, rate: float | None = None, lead: str | Sequence[str] = (),
        spacing: Sequence[float] | None = None,
    ) -> Mask:  # fmt: skip
        """Segment an image. Files are sent unchanged, arrays and Pillow images losslessly.

        A recording (a path such as `record.hea`, its bytes, or an array with a `rate`) is segmented by `segment_signal`, whose
        parameters `rate` and `lead` are; a volume (a path such as `case.nii.gz`, its bytes, a folder of DICOM images, or an array
        with a `spacing`) by `segment_volume`.

        Args:
            image: a path, the bytes of an image file, RGB uint8 H x W x 3, a Pillow image, or an array H x W x C of the model's
                channels, in the dtype and scale of its training images.
            model: name of the model; required if the service serves several.
            classes: names of the classes to keep; the pixels of all others become 255. Empty: all are kept.
            min_confidence: pixels of lower softmax probability, 0..1, become 255.
            min_area: 4-connected regions of fewer pixels become 255.
            confidence: whether to return the confidence too, of the same inference.

        Raises: ClientError; OSError for a path that cannot be read; ValueError, TypeError for an argument that is not an image.
        """
        common: dict[str, Any] = {"model": model, "classes": classes, "min_confidence": min_confidence}
        if rate is not None or lead or is_recording(image):
            return await self.segment_signal(cast(RecordingLike, image), rate=rate, lead=lead, **common)
        if spacing is not None or is_volume(image):
            return await self.segment_volume(cast(VolumeLike, image), spacing=spacing, confidence=confidence, **common)
        params = {**common, "min_area": min_area}
        response, fields = await self._send_with_classes(
            partial(self._post_image, image, **params, **responses.response_params(confidence))
        )
        read = responses.mask_from_json if confidence else Mask.from_png
        with self._connection.translate_errors(response):
            return await self._run_blocking(partial(read, response.content, image=image, **fields))

    async def segment_signal(
        self, recording: RecordingLike, *, rate: float | None = None, lead: str | Sequence[str] = (),
        model: str | None = None, classes: Sequence[str] = (), min_confidence: float = 0.0,
    ) -> SignalMask:  # fmt: skip
        """Find the events of a recording. A WFDB record is sent as a zip file of its header and signal files.

        Args:
            recording: a path (.hea, .edf, .wav, .csv, .npy ...), the bytes of a file, or an array of time steps, or of time
                steps x leads.
            rate: sampling rate in Hz of an array, or of a file that states none.
            lead: name or names of the leads to segment; default: all that the model takes.
            model, classes, min_confidence: as in `segment`, for time steps.

        Raises: ClientError; OSError for a file that cannot be read; ValueError, TypeError for another argument.
        """
        body = await self._run_blocking(partial(to_recording_body, recording))
        params = {"rate": rate, "lead": lead, "model": model, "classes": classes, "min_confidence": min_confidence}
        response, fields = await self._send_with_classes(partial(self._post_image, body, format="npz", **params))
        with self._connection.translate_errors(response):
            return await self._run_blocking(partial(SignalMask.from_npz, response.content, image=recording, **fields))

    async def segment_volume(
        self, volume: VolumeLike, *, spacing: Sequence[float] | None = None, model: str | None = None,
        classes: Sequence[str] = (), min_confidence: float = 0.0, confidence: bool = False,
    ) -> VolumeMask:  # fmt: skip
        """Segment a volume. Files are sent unchanged, a folder of DICOM images as a zip file.

        Args:
            volume: a path (.nii, .nii.gz, .nrrd, .tif, .npz ...), a folder of the DICOM images of one series, the bytes of a file,
                or an array D x H x W, or D x H x W x C.
            spacing: mm along D, H and W of an array.
            model, classes, min_confidence, confidence: as in `segment`, for voxels.

        Raises: ClientError; OSError for a file that cannot be read; ValueError, TypeError for another argument.
        """
        body = await self._run_blocking(partial(to_volume_body, volume, spacing))
        # A file gets labels on its grid, to be saved as they came; an array in its own order of axes.
        as_npz = confidence or isinstance(volume, np.ndarray)
        params = {"model": model, "classes": classes, "min_confidence": min_confidence, "confidence": confidence}
        format = "npz" if as_npz else "nifti"
        response, fields = await self._send_with_classes(partial(self._post_image, body, format=format, **params))
        read = VolumeMask.from_npz if as_npz else VolumeMask.from_nifti
        with self._connection.translate_errors(response):
            return await self._run_blocking(partial(read, response.content, image=volume, **fields))

    async def segment_batch(
        self, images: Sequence[ImageLike], *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, confidence: bool = False,
    ) -> list[Mask | ServiceError]:  # fmt: skip
        """Segment several images in one request, or several recordings or volumes: by default, the service accepts up to 64.

        Returns: for each image, in the same order, its mask or its error; all share the request id and the timing.
        Raises: as `segment`, for errors of the whole request.
        """
        params = {"model": model, "classes": classes, "min_confidence": min_confidence, "min_area": min_area}
        if not images:
            return []
        encode: Callable[[Any], bytes] = partial(to_request_body, local=self._connection.is_local)
        read: Callable[..., list[Mask | ServiceError]] = responses.masks_from_batch
        output = responses.response_params(confidence, many=True)
        if all(map(is_recording, images)):
            encode, output = to_recording_body, {"format": "npz"}
            read = partial(responses.masks_from_batch_zip, read=SignalMask.from_npz)
        elif all(map(is_volume, images)):
            encode, output = to_volume_body, {"format": "npz", "confidence": confidence}
            read = partial(responses.masks_from_batch_zip, read=VolumeMask.from_npz)
        bodies = await self._run_blocking(lambda: [encode(image) for image in images])
        send = partial(
            self._connection.request, "POST", "/v1/segment/batch", params=_query_params(**params, **output),
            files=[("images", (str(index), body)) for index, body in enumerate(bodies)],
        )  # fmt: skip
        response, fields = await self._send_with_classes(send)
        with self._connection.translate_errors(response):
            return await self._run_blocking(partial(read, response.content, images, **fields))

    async def overlay(self, image: ImageLike, alpha: float = 0.5, bands: Sequence[str] = ()) -> bytes:
        """A JPEG of the image blended with the class colors; `alpha`, 0..1, is their opacity.

        `bands`: names of one or three channels to show; default: red, green and blue, or the first three.
        Raises: as `segment`.
        """
        return await self.segment_bytes(image, "overlay", alpha=alpha, bands=bands)

    async def segment_json(
        self, image: ImageLike, masks: str = "rle", *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, simplify: float = 0.0, confidence: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """The service's `json` output: pixels, fraction, bounding box and mask of each class; of a volume voxels, ml and box.

        `masks`: rle (COCO), polygons (GeoJSON; outlines deviate by up to `simplify` pixels), png or none.
        Raises: as `segment`.
        """
        if is_volume(image):
            image = await self._run_blocking(partial(to_volume_body, image))
        response = await self._post_image(
            image, format="json", masks=masks, model=model, classes=classes, min_confidence=min_confidence,
            min_area=min_area, simplify=simplify, confidence=confidence,
        )  # fmt: skip
        with self._connection.translate_errors(response):
            return responses.read_result(response.json())

    async def segment_bytes(
        self, image: ImageLike, format: str = "png", *, model: str | None = None, classes: Sequence[str] = (),
        min_confidence: float = 0.0, min_area: int = 0, alpha: float = 0.5, masks: str = "rle", simplify: float = 0.0,
        confidence: bool = False, bands: Sequence[str] = (), rate: float | None = None, lead: str | Sequence[str] = (),
        spacing: Sequence[float] | None = None,
    ) -> bytes:  # fmt: skip
        """The response's bytes in any output format: png, overlay, confidence, npy, json; of a recording events, npy, npz, csv,
        wfdb; of a volume nifti, npz, tiff, json. Raises: as `segment`.
        """
        body: ImageLike = image
        if rate is not None or is_recording(image):
            body = await self._run_blocking(partial(to_recording_body, cast(RecordingLike, image)))
        elif spacing is not None or is_volume(image):
            body = await self._run_blocking(partial(to_volume_body, image, spacing))
        response = await self._post_image(
            body, format=format, model=model, classes=classes, min_confidence=min_confidence, min_area=min_area,
            alpha=alpha, masks=masks, simplify=simplify, confidence=confidence, bands=bands, rate=rate, lead=lead,
        )  # fmt: skip
        with self._connection.translate_errors(response):
            return responses.check_format(response.content, format)

    async def models(self) -> list[dict[str, Any]]:
        """The served bundles, each with name, hash, spec, palette, engine and precision. Raises: ClientError."""
        response = await self._connection.request("GET", "/v1/models")
        with self._connection.translate_errors(response):
            return [responses.read_model_entry(entry) for entry in response.json()]

    async def model(self, name: str) -> dict[str, Any]:
        """The served bundle of that name, as in `models`. Raises: UnknownModelError, ClientError."""
        response = await self._connection.request("GET", f"/v1/models/{quote(name, safe='')}")
        with self._connection.translate_errors(response):
            return responses.read_model_entry(response.json())

    async def is_ready(self) -> bool:
        """Whether the service is ready. Sends one request, without retries."""
        return await self._connection.get_status("/readyz") == 200

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _post_image(self, image: ImageLike, **params: Any) -> httpx.Response:
        """Post an image. Raises: InvalidResponseError for a response without X-Model: it is not from maskserve."""
        body = image
        if not isinstance(image, bytes):
            body = await self._run_blocking(partial(to_request_body, image, self._connection.is_local))
        response = await self._connection.request(
            "POST", "/v1/segment", self._headers, params=_query_params(**params), content=body
        )
        if response.status_code == httpx.codes.ACCEPTED:
            response = await self._connection.wait_for_job(response)
        with self._connection.translate_errors(response):
            responses.response_model_tag(response)
        return response

    async def _send_with_classes(
        self, send: Callable[[], Awaitable[httpx.Response]]
    ) -> tuple[httpx.Response, dict[str, Any]]:
        """Send the request; returns its response and the fields of the mask beside its pixels, with the model's classes.

        If the service replaced the model between the mask and the request for its classes, the request is sent once more,
        to the model that is served now.
        """
        response = await send()
        if not await self._fetch_classes(response):
            response = await send()
            await self._fetch_classes(response)
        tag = responses.response_model_tag(response)
        classes = self._classes_by_model.get(tag, [])
        return response, {"model": tag, "classes": classes, **responses.response_metadata(response)}

    async def _fetch_classes(self, response: httpx.Response) -> bool:
        """Fetch the classes of the response's model, unless they are known. Returns: whether they are known now."""
        with self._connection.translate_errors(response):
            tag = responses.response_model_tag(response)
        if tag not in self._classes_by_model:
            entries = await self.models()
            with self._connection.translate_errors(response):
                self._classes_by_model |= {
                    responses.entry_model_tag(entry): entry["spec"]["classes"] for entry in entries
                }
        return tag in self._classes_by_model


def _query_params(**params: Any) -> dict[str, Any]:
    """The parameters that differ from their defaults."""
    for name in ("classes", "bands", "lead"):
        if not isinstance(params.get(name, ""), str):
            params[name] = ",".join(params[name])
    return {name: value for name, value in params.items() if value != DEFAULT_PARAMS[name]}
