"""The balance of an account, as admission sees it."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import money
from libs.common.balances import StoreUnavailable
from services.admin.accounts import find_account
from services.admin.problems import Unavailable
from services.admin.resource import Context, Operation, respond


class BalanceView(msgspec.Struct, kw_only=True):
    """Decimal strings of USD, exact. granted = available + held + spent."""

    available_usd: str
    held_usd: str
    spent_usd: str
    granted_usd: str


async def show(context: Context, request: Request) -> Response:
    """GET /accounts/{account_id}/balance."""
    account, _ = await find_account(context, request.path_params["account_id"])
    try:
        balance = await context.balances.read(account.id)
    except StoreUnavailable:
        balance = None
    if balance is None:
        raise Unavailable("The balance cannot be read right now. Try again.")
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
        method="GET", path="/accounts/{account_id}/balance", handler=show, summary="Show a balance",
        answer=BalanceView,
    ),
)  # fmt: skip
