"""Requests generated from the OpenAPI document of the service (schemathesis): every response is documented."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fixtures_bundles import synthetic_image
from tests.service.test_app import encode_image

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
IMAGE = encode_image(synthetic_image(24, 32), "PNG")

fuzz_settings = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def api_schema(service_url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{service_url}/v1/openapi.json")


def test_every_response_is_documented(api_schema: schemathesis.BaseSchema) -> None:
    count = 0
    for operation in api_schema.get_all_operations():

        @fuzz_settings
        @given(case=operation.ok().as_strategy())
        def send(case: schemathesis.Case) -> None:
            nonlocal count
            count += 1
            case.call_and_validate(checks=CHECKS, timeout=30)

        send()
    assert count > 50


def test_every_parameter_with_a_real_image(api_schema: schemathesis.BaseSchema) -> None:
    """Generated bodies are not images; with an image, the parameters reach the outputs."""
    statuses = set()

    @fuzz_settings
    @given(case=api_schema["/segment"]["POST"].as_strategy())
    def send(case: schemathesis.Case) -> None:
        case.media_type, case.body = "image/png", IMAGE
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    send()
    assert 200 in statuses
