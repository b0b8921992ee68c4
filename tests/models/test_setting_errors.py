"""Messages for values that pydantic refuses."""

from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from models.setting_errors import plain_reason


def test_limits_are_named() -> None:
    class Limits(BaseModel):
        low: int = Field(5, ge=3)
        high: float = Field(0.5, lt=1)

    def reason(**values: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            Limits(**values)
        return plain_reason(caught.value.errors()[0])

    assert [reason(low=2), reason(high=1), reason(low=2.5), reason(high="x")] == [
        "expected at least 3", "expected less than 1", "expected a whole number", "expected a number",
    ]  # fmt: skip
