"""Limits as the API reads and shows them: the one shape for accounts, members and keys. Money is a decimal string here."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from libs.common import money
from libs.common.limits import NO_DEFAULTS, Limits, Rate, Slots
from services.admin.problems import Unprocessable

Usd = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"})]
_BUDGETS: Final = {f"budget_{period}_usd": f"budget_{period}_nanos" for period in ("day", "week", "month", "total")}


class LimitsChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is absent stays; null takes a limit away, or back to the default of an account."""

    rpm: Rate | UnsetType | None = UNSET
    itpm: Rate | UnsetType | None = UNSET
    otpm: Rate | UnsetType | None = UNSET
    free_rpm: Rate | UnsetType | None = UNSET
    in_flight: Slots | UnsetType | None = UNSET
    budget_day_usd: Usd | UnsetType | None = UNSET
    budget_week_usd: Usd | UnsetType | None = UNSET
    budget_month_usd: Usd | UnsetType | None = UNSET
    budget_total_usd: Usd | UnsetType | None = UNSET


class LimitsView(msgspec.Struct, kw_only=True):
    """Limits in force; null: not limited here."""

    rpm: int | None
    itpm: int | None
    otpm: int | None
    free_rpm: int | None
    in_flight: int | None
    budget_day_usd: str | None
    budget_week_usd: str | None
    budget_month_usd: str | None
    budget_total_usd: str | None


def changed(limits: Limits, change: LimitsChange | UnsetType) -> Limits:
    """The limits after a change. Raises Unprocessable that names the field."""
    if change is UNSET:
        return limits
    values: dict[str, Any] = {}
    for name, value in msgspec.structs.asdict(change).items():
        if value is not UNSET:
            values[_BUDGETS.get(name, name)] = _nanos(name, value) if name in _BUDGETS else value
    return msgspec.structs.replace(limits, **values)


def view(limits: Limits, defaults: Limits = NO_DEFAULTS) -> LimitsView:
    """What is in force, given the defaults of where they stand."""
    fields: dict[str, Any] = {}
    for name in LimitsView.__struct_fields__:
        stored = _BUDGETS.get(name, name)
        own = getattr(limits, stored)
        value = getattr(defaults, stored) if own is None else own
        fields[name] = money.format_usd(value) if name in _BUDGETS and value is not None else value
    return LimitsView(**fields)


def _nanos(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        nanos = money.parse_usd(text)
    except ValueError as error:
        raise Unprocessable(f"limits.{name}: {error}.") from None
    if text.startswith("-"):
        raise Unprocessable(f"limits.{name}: a budget is not negative.")
    return nanos
