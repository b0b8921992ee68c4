"""Messages for values that pydantic refuses."""

from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from models.setting_errors import plain_reason, quoted


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


def test_quoted_keeps_backslashes_and_escapes_control_characters() -> None:
    assert quoted(r"^(patient\d+)") == r"'^(patient\d+)'"
    assert quoted("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert quoted("größe") == "'größe'" and quoted(5) == "5"
