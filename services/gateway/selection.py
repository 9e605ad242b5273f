"""Which upstream credential a request goes to. Pure.

An account sticks to one, because prompt caches live in the upstream's workspace: weighted rendezvous hashing (Schindelhauer and
Schomaker 2005: the highest -weight / ln(hash) wins), so that a credential that comes or goes moves only its own accounts. When
that one is out, the least loaded of the others takes over.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

_BITS: Final = 52


class Option(Protocol):
    """What is to be known of a credential."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def weight(self) -> int:
        """Its share beside the others'."""

    @property
    def account_id(self) -> str:
        """Dedicated to it; empty: shared."""

    @property
    def in_flight(self) -> int:
        """Requests under way there."""


_Option = TypeVar("_Option", bound=Option)


def for_account(options: Iterable[_Option], account_id: str, dedicated: Collection[str]) -> list[_Option]:
    """Those an account may use. `dedicated`: the accounts that have credentials of their own, in whatever state.

    A dedicated credential that is out of service leads to no other: whose prompts go where is not for a failure to decide.
    """
    owner = account_id if account_id in dedicated else ""
    return [option for option in options if option.account_id == owner]


def first_choice(options: Sequence[_Option], account_id: str) -> _Option:
    """The one the account sticks to, of one or more."""
    return max(options, key=lambda option: (_score(option, account_id), option.id))


def least_loaded(options: Sequence[_Option], account_id: str) -> _Option:
    """The one with the fewest requests for its weight, of one or more; of equal ones, the one the account would stick to."""
    return min(options, key=lambda option: (option.in_flight / option.weight, -_score(option, account_id), option.id))


def _score(option: Option, account_id: str) -> float:
    digest = blake2b(f"{account_id}\0{option.id}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> (64 - _BITS)
    return -option.weight / math.log((number + 0.5) / (1 << _BITS))  # never 0 or 1
