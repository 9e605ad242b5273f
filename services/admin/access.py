"""Who calls, and what which role may do. Pure. Every operation names its roles; there is no way to add one that does not."""

from typing import Final, Literal

import msgspec

from libs.common.entities import Scope

Role = Literal[
    "operator:owner", "operator:finance", "operator:support", "operator:viewer",
    "account:owner", "account:admin", "account:developer", "account:billing",
]  # fmt: skip
Roles = frozenset[Role]

OPERATORS: Final[Roles] = frozenset({"operator:owner", "operator:finance", "operator:support", "operator:viewer"})
"""Every operator may read what is not a secret."""
OPERATOR_OWNER: Final[Roles] = frozenset({"operator:owner"})
MONEY: Final[Roles] = frozenset({"operator:owner", "operator:finance"})
SUPPORT: Final[Roles] = frozenset({"operator:owner", "operator:support"})
MEMBERS: Final[Roles] = frozenset({"account:owner", "account:admin", "account:developer", "account:billing"})
LEADERS: Final[Roles] = frozenset({"account:owner", "account:admin"})
"""Who runs an account's team."""
PAYERS: Final[Roles] = LEADERS | {"account:billing"}
MAKERS: Final[Roles] = LEADERS | {"account:developer"}
"""Who may have keys."""
EVERYBODY: Final[Roles] = OPERATORS | MEMBERS


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The authenticated caller."""

    actor: str
    """Id of an operator, a member or a service token; `admin-token` for the one of the settings."""
    role: Role
    account_id: str = ""
    """Empty: an operator."""
    scopes: frozenset[Scope] | None = None
    """Of a service token; None: all that the role may do."""
    session: str = ""
    """Of somebody who has signed in: names his session in Redis."""

    @property
    def is_operator(self) -> bool:
        """Whether no account bounds him."""
        return not self.account_id

    @property
    def only_member_id(self) -> str:
        """Whose keys and usage a developer is bounded by: his own. Empty: not bounded."""
        return self.actor if self.role == "account:developer" else ""


def operator(role: str) -> Role:
    """`owner` → `operator:owner`."""
    found: Role = msgspec.convert(f"operator:{role}", Role)
    return found


def member(role: str) -> Role:
    """`owner` → `account:owner`."""
    found: Role = msgspec.convert(f"account:{role}", Role)
    return found


def may(principal: Principal, roles: Roles, scope: Scope | None) -> bool:
    """Whether a caller may use an operation with these roles and this scope; an operation without a scope is for people."""
    if principal.role not in roles:
        return False
    return principal.scopes is None or (scope is not None and scope in principal.scopes)
