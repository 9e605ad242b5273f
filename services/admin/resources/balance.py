"""The balance of an account, as admission sees it."""

from typing import Final

import msgspec
from starlette.responses import Response

from libs.common import money
from libs.common.scripts import StoreUnavailable
from services.admin.access import OPERATORS, PAYERS
from services.admin.problems import Unavailable
from services.admin.resource import Call, Context, Operation, is_id, respond
from services.admin.resources.accounts import find_account

_AWAY: Final = "The balance cannot be read right now. Try again."


class BalanceView(msgspec.Struct, kw_only=True):
    """Decimal strings of USD, exact. granted = available + held + spent."""

    available_usd: str
    held_usd: str
    spent_usd: str
    granted_usd: str


async def show(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/balance."""
    account_id = call.account_id
    try:
        balance = await context.balances.read(account_id) if is_id("acct", account_id) else None
    except StoreUnavailable:
        raise Unavailable(_AWAY) from None
    if balance is None:
        await find_account(context, account_id)
        raise Unavailable(_AWAY)  # it exists, but Redis does not know it yet, or any more
    return respond(
        BalanceView(
            available_usd=money.format_usd(balance.available),
            held_usd=money.format_usd(balance.held),
            spent_usd=money.format_usd(balance.spent),
            granted_usd=money.format_usd(balance.granted),
        )
    )


OPERATIONS = (
    Operation(
        method="GET", path="/accounts/{account_id}/balance", handler=show, summary="Show a balance", answer=BalanceView,
        roles=OPERATORS | PAYERS, scope="money:read",
    ),
)  # fmt: skip
