"""Types of settings: numbers with a sign, shares, counts, ranges; and the base class of a section."""

from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from genfl_mpi.util.text import suggestion


class Section(BaseModel):
    """A group of settings. Unknown keys are refused, and values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class OneOf:
    """Validate that a text setting is one of `names`, or module:function of the user's code."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, value: str) -> str:
        if value not in self.names and ":" not in value:
            raise ValueError(
                f"must be one of {', '.join(self.names)}, or module:function of your own"
                + suggestion(value, self.names)
            )
        return value


class Needs(NamedTuple):
    """Mark a setting or a section, in its annotation: it has no effect in runs without something.

    what: what it needs, in words, or as .key=value with a key of its section. holds: whether a run has it, a
    function of the run's `Config` and of the section.
    """

    what: str
    holds: Callable[[Any, Any], bool]


def needs(key: str, *values: Any, own: bool = True) -> Needs:
    """Mark a setting that needs one of these values of another one.

    key: a dotted key, or a setting of the same section. own: whether a function of the user's, which may use
    the setting, will do.
    """

    def holds(config: Any, section: Any) -> bool:
        value = attrgetter(key)(config if "." in key else section)
        return value in values or (own and ":" in str(value))

    *others, last = (str(value).lower() for value in values)
    choices = f"{', '.join(others)} or {last}" if others else last
    return Needs(f"{key if '.' in key else f'.{key}'}={choices}", holds)


class AtMost:
    """Validate an upper bound, and give its reason in the error message."""

    def __init__(self, limit: int, reason: str) -> None:
        self.limit, self.reason = limit, reason

    def __call__(self, value: int) -> int:
        if value > self.limit:
            raise ValueError(f"must be at most {self.limit}: {self.reason}")
        return value


def at_most(limit: int, reason: str) -> AfterValidator:
    """Make an upper bound whose error message gives the reason."""
    return AfterValidator(AtMost(limit, reason))


MIN_MAGNITUDE, MAX_MAGNITUDE = 1e-37, 1e37  # of numbers that enter float32 computations


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("needs a number")
    return value


def _check_magnitude(value: float) -> float:
    if value and not MIN_MAGNITUDE <= abs(value) <= MAX_MAGNITUDE:
        raise ValueError(
            f"must be 0 or have a magnitude from {MIN_MAGNITUDE:g} to {MAX_MAGNITUDE:g}: "
            "models are computed in float32, whose range ends there"
        )
    return value


def _check_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("must be the smallest value followed by the largest")
    return ends


# Lax: also accepts "1e-4", which YAML reads as text.
Flag = Annotated[bool, Strict()]  # not 0 and 1, or words in quotes
Number = Annotated[float, BeforeValidator(_refuse_bool), AfterValidator(_check_magnitude)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Decibels = Annotated[Number, Field(ge=-400, le=400)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Epochs = Annotated[Count, at_most(10_000, "the batches of all epochs are drawn before the first step")]
Threads = Annotated[
    Count, at_most(1024, "no node has more cores, and a process cannot start many more threads")
]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_check_order)]  # ends of a uniform draw


def as_text(value: Any) -> str:
    """Return the value of a setting as text for key=value."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
