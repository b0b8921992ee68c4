"""The word that a loss is chosen by: `ce`, `ce+dice`, `0.5*ohem+lovasz`. No torch here, so that settings are read at once."""

import difflib
import math
from dataclasses import dataclass

from models.errors import ConfigError

LOSS_NAMES = ("ce", "ohem", "dice", "focal", "lovasz")  # the keys of `training.engine.losses.LOSSES`
SYNTAX_HINT = "write names with + between, each with a share before it where that is not 1, such as 0.5*ohem+lovasz"


@dataclass(frozen=True)
class LossTerm:
    """One loss of a sum, and the share that it is counted with."""

    weight: float
    name: str


def parse_loss(text: str) -> tuple[LossTerm, ...]:
    """The terms of a sum of losses, in order. Raises: ConfigError naming what is wrong and what there is."""
    terms = tuple(_parse_term(word, text) for word in text.split("+"))
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"The loss {text!r} has {name} twice; give it once, with a share such as 2*{name}.")
    return terms


def _parse_term(word: str, text: str) -> LossTerm:
    share, star, name = word.rpartition("*")
    name = name.strip()
    if not name:
        raise ConfigError(f"The loss {text!r} lacks a name; {SYNTAX_HINT}.")
    if name not in LOSS_NAMES:
        close = difflib.get_close_matches(name, LOSS_NAMES, n=1)
        hint = f"did you mean {close[0]}? There" if close else "there"
        raise ConfigError(
            f"The loss {name!r} is not known; {hint} is {', '.join(LOSS_NAMES)}, and sums: {SYNTAX_HINT}."
        )
    return LossTerm(_parse_weight(share, text) if star else 1.0, name)


def _parse_weight(word: str, text: str) -> float:
    try:
        share = float(word)
    except ValueError:
        raise ConfigError(f"The share {word.strip()!r} in the loss {text!r} is no number; {SYNTAX_HINT}.") from None
    if not 0 < share < math.inf:
        raise ConfigError(f"The share {word.strip()!r} in the loss {text!r} is not above 0; leave the term away.")
    return share
