"""The OpenAPI document: what FastAPI cannot derive, because the routes parse their own parameters and bodies."""

import http
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import Response

from models.outputs import OUTPUT_FORMATS
from service import responses
from service.batch import ZIP_MEDIA_TYPE
from service.explain import ExplainParams
from service.request_parsing import IMAGE_FIELD, IMAGES_FIELD, SegmentParams

BINARY_SCHEMA: dict[str, Any] = {"type": "string", "format": "binary"}
IMAGE_SCHEMA = {
    **BINARY_SCHEMA,
    "description": "the bytes of a JPEG, PNG, WebP, TIFF, BMP or AVIF; for a model of signals of a WFDB record in a zip file, EDF, "
    "WAV, CSV, npy or npz; for a model of volumes of a NIfTI (.nii, .nii.gz), NRRD, TIFF stack, npy, npz, or a zip file of a DICOM "
    "series",
}
DESCRIPTION = """Image in, one label per pixel out; recording in, its events out; volume in, one label per voxel out. Every error is
`application/problem+json` (RFC 9457), with a request id.

    curl --data-binary @photo.jpg http://127.0.0.1:3000/v1/segment -o mask.png
    curl -F image=@photo.jpg 'http://127.0.0.1:3000/v1/segment?format=json&masks=polygons'
    curl -F images=@a.jpg -F images=@b.jpg http://127.0.0.1:3000/v1/segment/batch -o masks.zip
    curl --data-binary @record.edf 'http://127.0.0.1:3000/v1/segment?lead=II' -o events.json
    curl --data-binary @case.nii.gz http://127.0.0.1:3000/v1/segment -o labels.nii.gz
"""
JSON_EXAMPLE = {
    "height": 480,
    "width": 640,
    "classes": [
        {
            "label": 1,
            "name": "road",
            "rgb": [128, 64, 128],
            "pixels": 98304,
            "fraction": 0.32,
            "bbox": [0, 240, 640, 240],
            "rle": {"size": [480, 640], "counts": "PPYo0..."},
        }
    ],
    "unlabeled": {"pixels": 208896, "fraction": 0.68},
}
EVENTS_EXAMPLE = {
    "model": "ecg",
    "rate": 500.0,
    "length": 5000,
    "seconds": 10.0,
    "leads": ["ii"],
    "events": [
        {
            "lead": "ii",
            "class": "qrs",
            "label": 2,
            "onset": 331,
            "offset": 380,
            "onset_seconds": 0.662,
            "offset_seconds": 0.76,
            "confidence": 0.98,
        }
    ],
    "unlabeled": 0,
}
VOLUME_EXAMPLE = {
    "model": "hippocampus",
    "shape": [35, 51, 35],
    "spacing": [1.0, 1.0, 1.0],
    "voxel_ml": 0.001,
    "classes": [
        {
            "label": 1,
            "name": "anterior",
            "rgb": [200, 60, 60],
            "voxels": 1532,
            "fraction": 0.0245,
            "ml": 1.532,
            "bbox": [10, 12, 8, 14, 20, 16],
            "mean_confidence": 0.97,
        }
    ],
    "unlabeled": {"voxels": 0, "fraction": 0.0},
}
COMMON_ERROR_STATUSES = (400, 401, 403, 408, 413, 429, 500, 503, 504)


def openapi_parameters(params: type[BaseModel] = SegmentParams) -> list[dict[str, Any]]:
    """The parameters of a request, as OpenAPI describes them in a query."""
    schema = params.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": entry.pop("description"),
            "schema": _query_schema(name, entry),
        }
        for name, entry in schema.items()
    ]


def _query_schema(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter: lists are separated by commas, and those that are optional have no null in a query."""
    if name in ("classes", "bands", "lead", "model", "at"):
        return {"type": "string"}
    choices = [choice for choice in entry.pop("anyOf", []) if choice.get("type") != "null"]
    schema = {**entry, **(choices[0] if choices else {})}
    return {key: value for key, value in schema.items() if key != "default" or value is not None}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        rows = [*responses.ERRORS.values(), responses.INTERNAL_ERROR]
        kinds = {kind: title for row_status, kind, title in rows if row_status == status}
        described[status] = {
            "description": "; ".join(kinds.values()) or http.HTTPStatus(status).phrase,
            "content": {
                responses.PROBLEM_JSON: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {
                        kind: {"value": _problem_example(status, kind, title)} for kind, title in kinds.items()
                    },
                }
            },
        }
        if status in (429, 503):
            described[status]["headers"] = {
                "Retry-After": {"description": "seconds to wait before a retry", "schema": {"type": "integer"}}
            }
    return described


def _problem_example(status: int, kind: str, title: str) -> dict[str, Any]:
    problem = responses.Problem(
        type=responses.PROBLEM_TYPE_PREFIX + kind, title=title, status=status,
        detail="What came, what was expected, and what to do.", request_id="5f0c9a1be2d34c77",
    )  # fmt: skip
    return problem.model_dump()


_PARAMETERS = openapi_parameters()


def _form_schema(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A form with images, and the parameters beside them."""
    parameters = {entry["name"]: {**entry["schema"], "description": entry["description"]} for entry in _PARAMETERS}
    return {"schema": {"type": "object", "properties": {field: schema, **parameters}, "required": [field]}}


PREFER_HEADER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async`: 202 at once, and the result at the address in `Location`, for work that takes longer than the "
    "service's time-out",
    "schema": {"type": "string", "enum": ["respond-async"]},
}


def _request_schema(content: dict[str, Any], headers: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"parameters": [*_PARAMETERS, *headers], "requestBody": {"required": True, "content": content}}


JOB_RESPONSE: dict[str, Any] = {
    "description": "The job runs: `id`, `state`, `created`",
    "content": {"application/json": {"schema": {"type": "object"}}},
    "headers": {
        "Location": {"description": "the path of the result, /v1/jobs/ID", "schema": {"type": "string"}},
        "Retry-After": {"description": "seconds to wait before the result is asked for", "schema": {"type": "integer"}},
    },
}

# Arguments of the FastAPI routes.
SEGMENT_ROUTE: dict[str, Any] = {
    "tags": ["images"],
    "summary": "Segment an image, a recording or a volume",
    "response_class": Response,
    "responses": {
        200: {
            "description": "A mask of the size of the upright image. Filtered pixels are unlabeled: label 255, transparent.\n"
            "- `png`: an indexed PNG, each pixel its label\n- `overlay`: the class colors over the image, a JPEG\n"
            "- `confidence`: a gray PNG, 255 for a softmax probability of 1\n- `npy`: uint8 H x W for numpy.load\n"
            "- `json`: the classes that are present, with pixels, fraction, box and mask\n\n"
            "Of a model of signals, on the time base of the file that was sent:\n"
            "- `events`: class, onset, offset and mean confidence of each event, as JSON\n- `csv`: the same, a row an event\n"
            "- `wfdb`: an annotation file in MIT format\n- `npy`: uint8 labels, time steps (x leads)\n"
            "- `npz`: labels, confidence and rate, with `trace` also the recording\n\n"
            "Of a model of volumes, voxel for voxel on the grid of the file that was sent:\n"
            "- `nifti`: the labels as .nii.gz, with the axes and the affine of the file\n- `npz`: labels, affine and spacing, with "
            "`confidence` also the confidence\n- `tiff`: a stack of slices\n- `json`: voxels, ml, box and mean confidence of each "
            "class",
            "content": {output.MEDIA_TYPE: {} for formats in OUTPUT_FORMATS.values() for output in formats.values()}
            | {
                "application/json": {
                    "examples": {
                        "json": {"value": JSON_EXAMPLE},
                        "events": {"value": EVENTS_EXAMPLE},
                        "volume": {"value": VOLUME_EXAMPLE},
                    }
                }
            },
        },
        202: JOB_RESPONSE,
        **error_responses(*COMMON_ERROR_STATUSES, 404, 415, 422),
    },
    "openapi_extra": _request_schema(
        {"multipart/form-data": _form_schema(IMAGE_FIELD, IMAGE_SCHEMA), "image/*": {"schema": BINARY_SCHEMA}},
        [PREFER_HEADER],
    ),
}
BATCH_ROUTE: dict[str, Any] = {
    "tags": ["images"],
    "summary": "Segment several images",
    "response_class": Response,
    "responses": {
        200: {
            "description": "One entry per image, in their order. An invalid image gets a problem and does not affect the others.\n"
            "- for the formats `json` and `events`: an array of {index, image, status, result or problem}\n"
            "- otherwise a zip: `photo.png` (or the suffix of the format) for `photo.jpg`, or `photo.problem.json`; and "
            "`manifest.json`, an array of {index, image, file, status}",
            "content": {ZIP_MEDIA_TYPE: {}, "application/json": {}},
        },
        **error_responses(*COMMON_ERROR_STATUSES, 404),
    },
    "openapi_extra": _request_schema(
        {"multipart/form-data": _form_schema(IMAGES_FIELD, {"type": "array", "items": IMAGE_SCHEMA})}
    ),
}
JOB_ROUTE: dict[str, Any] = {
    "tags": ["jobs"],
    "summary": "Get the result of a job",
    "response_class": Response,
    "responses": {
        200: {
            "description": "The response of the request, as without `Prefer: respond-async`",
            "content": {output.MEDIA_TYPE: {} for formats in OUTPUT_FORMATS.values() for output in formats.values()},
        },
        202: JOB_RESPONSE,
        **error_responses(*COMMON_ERROR_STATUSES, 404, 415, 422),
    },
}
DELETE_JOB_ROUTE: dict[str, Any] = {
    "tags": ["jobs"],
    "summary": "Delete a job and its result",
    "status_code": 204,
    "responses": error_responses(401, 403, 404, 500),
}
EXPLAIN_ROUTE: dict[str, Any] = {
    "tags": ["images"],
    "summary": "Look inside: why an image got its labels",
    "response_class": Response,
    "responses": {
        200: {
            "description": "JSON: `view`, `numbers`, and `images`, PNGs in base64 of the image as the network sees it",
            "content": {"application/json": {}},
        },
        **error_responses(*COMMON_ERROR_STATUSES, 404, 415, 422),
    },
    "openapi_extra": {
        "parameters": openapi_parameters(ExplainParams),
        "requestBody": {"required": True, "content": {"image/*": {"schema": BINARY_SCHEMA}}},
    },
}
MODELS_ROUTE: dict[str, Any] = {
    "tags": ["models"],
    "summary": "List the served models",
    "responses": error_responses(401, 403, 500, 503),
}
MODEL_ROUTE: dict[str, Any] = {
    "tags": ["models"],
    "summary": "Get one model",
    "responses": error_responses(401, 403, 404, 500, 503),
}


EXAMPLE_ROUTE: dict[str, Any] = {
    "tags": ["models"],
    "summary": "Get an example image of a model",
    "response_class": Response,
    "responses": {
        200: {"description": "the image", "content": {"image/png": {"schema": BINARY_SCHEMA}}},
        **error_responses(401, 403, 404, 500, 503),
    },
}


def openapi_schema(api: FastAPI, keys_needed: bool) -> dict[str, Any]:
    """FastAPI's document, with problems and, if needed, API keys, which are the same for all routes."""
    schema: dict[str, Any] = get_openapi(
        title=api.title, version=api.version, description=api.description, routes=api.routes
    )
    # FastAPI adds an error of its own wherever there is a parameter; here an invalid parameter is a problem.
    for path in ("/models/{name}", "/examples/{name}/{file}"):
        del schema["paths"][path]["get"]["responses"]["422"]
    if "/jobs/{job_id}" in schema["paths"]:
        del schema["paths"]["/jobs/{job_id}"]["delete"]["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        del schema["components"]["schemas"][name]
    schema["components"]["schemas"]["Problem"] = responses.Problem.model_json_schema()
    if keys_needed:  # otherwise /v1/docs would show a padlock at each route
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        schema["security"] = [{"bearer": []}, {"header": []}]
    return schema
