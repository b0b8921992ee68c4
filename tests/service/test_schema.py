"""Requests made up from the service's own OpenAPI document (schemathesis): what is answered is what is documented."""

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
    max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def api_schema(service_url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{service_url}/v1/openapi.json")


def test_every_answer_is_documented(api_schema: schemathesis.BaseSchema) -> None:
    asked = 0
    for found in api_schema.get_all_operations():

        @fuzz_settings
        @given(case=found.ok().as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS, timeout=30)

        ask()
    assert asked > 100


def test_every_parameter_with_a_real_image(api_schema: schemathesis.BaseSchema) -> None:
    """Made-up bodies are no images; with one, the parameters reach the outputs."""
    statuses = set()

    @fuzz_settings
    @given(case=api_schema["/segment"]["POST"].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.media_type, case.body = "image/png", IMAGE
        answer = case.call(timeout=30)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert 200 in statuses
