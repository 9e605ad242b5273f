"""What operators and members have in common in the API."""

from typing import Literal

import msgspec

from libs.common.entities import SignIn
from services.admin.resource import Context, time_of

ActiveOrNot = Literal["active", "disabled"]


class Link(msgspec.Struct):
    """A link that works once: whoever opens it sets the password."""

    url: str
    expires_at: str


def link_view(context: Context, token: str, sign_in: SignIn) -> Link:
    """The link, shown once. Its token stands behind #, so that no server's log has it."""
    return Link(f"{context.public_url}/link#{token}", time_of(sign_in.link_expires_at_ms))
