"""Which price book a request goes by: the one that counts at the time inside its id. It is chosen once, from memory.

So anybody can check it from a ledger row alone. A gateway that has never heard which books were published takes no request: what
is unknown is refused, not guessed. One that has heard goes on with what it knows while Redis is away.
"""

import asyncio
import logging
from typing import Final

from libs.common import clock, ids
from libs.common.books import Books, Found
from libs.common.errors import Overloaded
from libs.common.gates import Gates
from libs.common.pricebook import PriceBook
from libs.common.scripts import StoreUnavailable

_log: Final = logging.getLogger("relay.prices")
_AGAIN_S: Final = 0.25
_NOT_KNOWN: Final = "The relay does not know its prices yet. Nothing was charged; please try again."


class Prices:
    """Follows the published books."""

    def __init__(self, books: Books, gates: Gates, *, every_s: float) -> None:
        self._books = books
        self._gates = gates
        self._every_s = every_s
        self.is_known = False
        """Whether Redis has told once what was published."""

    def of_request(self, request_id: str) -> PriceBook:
        """The book of a request, by its id, which this process has made. Raises Overloaded."""
        if not self.is_known:
            raise Overloaded(_NOT_KNOWN)
        return self._books.at(ids.own_time_ms(request_id))

    async def run(self) -> None:
        """Look every few seconds, for ever; at once again until something is known."""
        while True:
            await asyncio.sleep(self._every_s if self.is_known else _AGAIN_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - logged; a loop that ended would hear of no price ever again
                _log.error("price books could not be looked for in a way nobody foresaw", exc_info=error)

    async def look(self) -> None:
        """Once. A Redis that has lost something may have lost books: it is not believed before it was restored."""
        try:
            if not self.is_known and not await self._gates.all_open():
                return
            found = await self._books.refresh()
        except StoreUnavailable:
            return
        now_ms = clock.unix_ms()
        for one in found:
            self._tell(one, now_ms)
        self.is_known = True

    def _tell(self, found: Found, now_ms: int) -> None:
        version, when = found.book.version, clock.iso_utc(found.effective_at_ms)
        if self.is_known and found.effective_at_ms <= now_ms:
            _log.error(
                "price book %s counts since %s and was heard of only now: requests in between went by another",
                version,
                when,
            )
        else:
            _log.warning("price book %s counts from %s on", version, when)
