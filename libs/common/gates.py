"""Whether a partition of Redis may be trusted: open for the server whose data was checked against the log, closed for any other.

A server that was restarted, or a replica that took over, has another run id than the one the gate was opened for. Admission sees
that in its own script and refuses until accounting has settled the last minutes of the log again (rewinder.py). A partition
without any gate is one that Redis has lost; only `rebuild` opens it.
"""

import asyncio
from typing import Final

import msgspec

from libs.common import ids, rediskeys
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts

_BELIEVED_S: Final = 1.0


class GateState(msgspec.Struct, frozen=True):
    """Of one partition."""

    run_id: str
    """The server's."""
    opened_for: str
    """Empty: the partition has no gate."""
    usage_sequence: int
    """Of stream USAGE: the last message that was settled here; 0 if none is known."""
    control_sequence: int
    """Of stream CONTROL: the last that was applied."""

    @property
    def is_open(self) -> bool:
        """Whether requests are admitted."""
        return self.run_id == self.opened_for


class Gates:
    """See the module's docstring. Every call raises StoreUnavailable when Redis does not answer."""

    def __init__(self, redis: RedisClient, scripts: Scripts | None = None) -> None:
        self._scripts = scripts or Scripts(redis)
        self._all_open_until = 0.0

    async def state(self, partition: int) -> GateState:
        """What is known of a partition, 0..63."""
        keys = rediskeys.gate(partition), rediskeys.marks(partition)
        run_id, opened_for, usage, control = await self._scripts.call("gate_state", len(keys), *keys)
        return GateState(run_id.decode(), opened_for.decode(), int(usage), int(control))

    async def states(self) -> list[GateState]:
        """Of all partitions, in order."""
        return await asyncio.gather(*(self.state(partition) for partition in range(ids.PARTITIONS)))

    async def all_open(self) -> bool:
        """Whether no partition is closed; true is believed for a second."""
        now = asyncio.get_running_loop().time()
        if now < self._all_open_until:
            return True
        found = all(state.is_open for state in await self.states())
        if found:
            self._all_open_until = now + _BELIEVED_S
        return found

    async def open(self, partition: int, run_id: str, *, opened_for: str = "") -> bool:
        """Admit requests again. False if the server is no longer the one with that run id, or the gate is no longer `opened_for`,
        as it was when checking began: the data may be gone, and must be checked again."""
        reply = await self._scripts.call("gate_open", 1, rediskeys.gate(partition), run_id, opened_for)
        return bool(reply == b"OPEN")

    async def close(self, partition: int) -> None:
        """Admit no requests until somebody opens it again; accounting does not by itself."""
        await self._scripts.call("gate_close", 1, rediskeys.gate(partition))

    async def claim(self, partition: int, who: str, *, for_ms: int) -> bool:
        """Say that `who` settles a closed partition again, or goes on with it; 0 gives it back. False: another does."""
        reply = await self._scripts.call("gate_claim", 1, rediskeys.claim(partition), who, str(for_ms))
        return bool(reply == b"MINE")

    async def mark(self, partition: int, *, usage_sequence: int = 0, control_sequence: int = 0) -> None:
        """Note how far the log is settled. Only moves forward; on a closed partition nothing is noted."""
        keys = rediskeys.gate(partition), rediskeys.marks(partition)
        await self._scripts.call("gate_mark", len(keys), *keys, str(usage_sequence), str(control_sequence))
