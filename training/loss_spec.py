"""Parser for loss expressions such as `ce`, `ce+dice` and `0.5*ohem+lovasz`. Imports no torch, so that configs load fast."""

import math
from dataclasses import dataclass

from models.errors import ConfigError, closest_names, quoted

LOSS_NAMES = ("ce", "ohem", "dice", "focal", "tversky", "lovasz")  # the keys of `training.engine.losses.LOSSES`
SYNTAX_HINT = "write names joined by +, each with an optional weight, such as 0.5*ohem+lovasz"


@dataclass(frozen=True)
class LossTerm:
    """One loss of a sum, and its weight."""

    weight: float
    name: str


def parse_loss(text: str) -> tuple[LossTerm, ...]:
    """The terms of a sum of losses, in order. Raises: ConfigError."""
    terms = tuple(_parse_term(term, text) for term in text.split("+"))
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"The loss {quoted(text)} has {name} twice; write it once, with a weight such as 2*{name}."
            )
    return terms


def _parse_term(term: str, text: str) -> LossTerm:
    weight, star, name = term.rpartition("*")
    name = name.strip()
    if not name:
        raise ConfigError(f"The loss {quoted(text)} lacks a name; {SYNTAX_HINT}.")
    if name not in LOSS_NAMES:
        close = closest_names(name, LOSS_NAMES)
        hint = f"; did you mean {close}?" if close else "."
        raise ConfigError(
            f"The loss {quoted(name)} is not known{hint} Losses are {', '.join(LOSS_NAMES)}; {SYNTAX_HINT}."
        )
    return LossTerm(_parse_weight(weight.strip(), text) if star else 1.0, name)


def _parse_weight(number: str, text: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        raise ConfigError(
            f"The weight {quoted(number)} in the loss {quoted(text)} is not a number; {SYNTAX_HINT}."
        ) from None
    if not 0 < weight < math.inf:
        raise ConfigError(f"The weight {quoted(number)} in the loss {quoted(text)} is not above 0; remove the term.")
    return weight
