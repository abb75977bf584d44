"""Types of settings: numbers with a sign, shares, counts, ranges; and what a section of them is."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value):
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _rising(ends):
    if ends[0] > ends[1]:
        raise ValueError("must be a smallest and a largest value, in this order")
    return ends


def one_of(*known):
    """The type of a setting that names one of `known`, or module:function of the user's own."""

    def check(value):
        if value not in known and ":" not in value:
            raise ValueError(f"must be {', '.join(known)}, or module:function of your own, not {value!r:.80}")
        return value

    return Annotated[str, AfterValidator(check)]


SMALLEST, LARGEST = 1e-37, 1e37


def _in_float32(value):
    if value and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(
            f"must be 0, or from {SMALLEST:g} to {LARGEST:g} in size: models are computed in float32, which ends there"
        )
    return value


def at_most(limit, why):
    """A bound of a setting that says why there is one."""

    def check(value):
        if value > limit:
            raise ValueError(f"must be at most {limit}: {why}")
        return value

    return AfterValidator(check)


Number = Annotated[
    float, BeforeValidator(_no_bool), AfterValidator(_in_float32)
]  # also of "1e-4", which YAML takes for a text
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Decibels = Annotated[Number, Field(ge=-400, le=400)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Epochs = Annotated[Count, at_most(10_000, "the batches of all epochs are drawn before the first step")]
Threads = Annotated[
    Count, at_most(1024, "no node has more cores, and its processes may not have many more threads")
]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]  # smallest and largest value of a draw


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
