"""Fixtures of the tests of the trainer."""

import pytest


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings draw no curves.png, which takes a second of matplotlib; those of session and module fixtures do."""
    monkeypatch.setattr("training.train.save_curves", lambda *_: None)
