"""The first start: nobody is there yet, and there is no default password. A link is printed by which the first owner sets his.

Where RELAY_ADMIN_TOKEN is set, whoever has it invites the first owner, and nothing is printed.
"""

import logging
from typing import Final

import msgspec

from libs.common import clock
from libs.common.entities import Operator
from services.admin.control import By
from services.admin.links import new_link
from services.admin.problems import Conflict, Unavailable
from services.admin.resource import Context

_log: Final = logging.getLogger("relay.setup")
FIRST_OWNER_ID: Final = "oper_" + "0" * 32
"""One id, so that replicas that start together cannot make two owners."""
_BY: Final = By(actor="set-up", address="", reason="first start")


async def offer(context: Context) -> None:
    """Print the set-up link, if no operator is there. A restart prints a new one, and the one before is void."""
    await context.mirror.whole.wait()
    if any(one.status != "invited" or one.email for one in context.mirror.all(Operator)):
        return
    try:
        found = await context.control.find(Operator, FIRST_OWNER_ID)
        owner = found.entity if found else _first_owner()
        if owner.status != "invited":
            return
        token, sign_in = new_link(owner.id, owner.sign_in)
        await context.control.put(msgspec.structs.replace(owner, sign_in=sign_in), over=found, by=_BY)
    except (Conflict, Unavailable) as problem:
        _log.warning("no set-up link: %s Another replica prints one, or the next start does.", problem.detail)
        return
    _log.warning("First start: set up the first owner within three days at %s/link#%s", context.public_url, token)


def _first_owner() -> Operator:
    return Operator(id=FIRST_OWNER_ID, name="owner", email="", role="owner", created_at_ms=clock.unix_ms())
