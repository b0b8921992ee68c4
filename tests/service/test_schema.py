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

from tests.fixtures_bundles import drawing
from tests.service.test_app import encoded

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
PICTURE = encoded(drawing(24, 32), "PNG")

made_up = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def document(service_url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{service_url}/v1/openapi.json")


def test_every_answer_is_documented(document: schemathesis.BaseSchema) -> None:
    asked = 0
    for found in document.get_all_operations():

        @made_up
        @given(case=found.ok().as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS, timeout=30)

        ask()
    assert asked > 100


def test_every_parameter_with_a_real_picture(document: schemathesis.BaseSchema) -> None:
    """Made-up bodies are no pictures; with one, the parameters reach the outputs."""
    statuses = set()

    @made_up
    @given(case=document["/segment"]["POST"].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.media_type, case.body = "image/png", PICTURE
        answer = case.call(timeout=30)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert 200 in statuses
