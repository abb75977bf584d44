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


Number = Annotated[float, BeforeValidator(_no_bool)]  # also of "1e-4", which YAML takes for a text
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]  # smallest and largest value of a draw


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
