"""What tests of the service share."""

import logging

import pytest


@pytest.fixture(autouse=True)
def log_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that was made in this process has turned the log to the standard error, where no `caplog` hears it."""
    monkeypatch.setattr(logging.getLogger("maskserve"), "propagate", True)
