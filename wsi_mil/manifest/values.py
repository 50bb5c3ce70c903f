"""What the text of a label means: a number, an event, several labels, or nothing at all.

Comes in: one text of a labels file. Goes out: its value, or why it has none. It knows no file and no slide.
"""

import math
import re
import unicodedata

NO_LABEL = "none"
"""What a slide without any of the labels says (multilabel)."""

EVENTS = {"0": False, "1": True, "true": True, "false": False, "yes": True, "no": False}
"""The words for a seen event and for none, in any case."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_MISSING = {"nan", "na", "n/a", "#n/a", "<na>", "null"}
_INFINITE = {"inf", "infinity"}
_OF_TABLES = {"1.0": "1", "0.0": "0"}  # what a column of 0 and 1 with gaps becomes


def is_missing(text: str, *, names: bool = False) -> bool:
    """Tell whether a text is what tables write where a value is missing.

    With ``names`` NA is a name: of a patient, or of North America.
    """
    word = text.casefold()
    return not word or (word in _MISSING and not (names and word == "na"))


def number(text: str) -> float | None:
    """Return a finite decimal number, None for anything else."""
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def number_fault(text: str, *, above_zero: bool = False) -> str:
    """Return what a text lacks to be a number (``above_zero``: to be a time); '' where it is one."""
    value = number(text)
    if value is None:
        if is_missing(text):
            return "is missing"
        infinite = _NUMBER.fullmatch(text) or text.lstrip("+-").casefold() in _INFINITE
        return "is infinite" if infinite else "is no number"
    return "is not above 0" if above_zero and value <= 0 else ""


def event(text: str) -> bool | None:
    """Return whether the event was seen; None where the text does not say."""
    return EVENTS.get(_OF_TABLES.get(text, text).casefold())


def survival_text(time: str, seen: bool) -> str:
    """Return a time and an event as one text, such as '12.5 event' or '12.5 censored'."""
    return f"{time} {'event' if seen else 'censored'}"


def survival(text: str) -> tuple[float, float]:
    """Return the time and the event (1 seen, 0 censored) of a ``survival_text``."""
    time, _, word = text.partition(" ")
    return float(time), float(word == "event")


def parts(text: str) -> tuple[str, ...]:
    """Return the labels that ';' joins, in their order; those of 'none' are none."""
    return () if text == NO_LABEL else tuple(each.strip() for each in text.split(";"))


def look(text: str) -> str:
    """Return the look of a label: the same where only case, blanks or the form of a number differ."""
    value = number(text)
    if value is not None:
        return repr(value + 0.0)
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold()


def meaning(text: str, task: str) -> object:
    """Return what two labels of a task have in common that say the same in other words."""
    if task == "survival":
        return survival(text)
    if task == "regression":
        return number(text)
    return frozenset(parts(text)) if task == "multilabel" else text
