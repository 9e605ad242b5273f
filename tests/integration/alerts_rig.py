"""The watcher and the outbox on real stores, turn by turn, with a clock for windows that a test can put forward."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Self

import msgspec

from libs.common import clock, ids, runtime, sealing
from libs.common.balances import Balances
from libs.common.directory import Directory
from libs.common.entities import AlertRule, Channel, Incident, RuleKind
from libs.common.events import Account, ApiKey
from libs.common.scripts import Scripts
from libs.common.sealing import Sealer
from libs.common.standing import Standings
from libs.common.upstreams import Upstreams
from services.admin.alerts.backlog import Backlog
from services.admin.alerts.measures import Measures, Reading
from services.admin.alerts.outbox import Outbox
from services.admin.alerts.watcher import Watcher
from services.admin.alerts.windows import Windows
from services.admin.control import By, Control
from services.admin.ledger import Ledger
from services.admin.mirror import Mirror
from services.admin.notices import targets
from services.admin.notices.notices import ChannelTarget
from services.admin.notices.senders import Senders, SenderSettings
from services.admin.passwords import Passwords
from services.admin.resource import Context
from services.admin.sessions import Sessions
from tests.integration.accounting_rig import Rig, until
from tests.unit.accounting.samples import account, api_key, credit

BY: Final = By(actor="test", address="", reason="test")


class Alerts:
    """One process of the control plane, without its API."""

    def __init__(self, rig: Rig, context: Context, others: Mapping[RuleKind, Reading]) -> None:
        self.rig = rig
        self.context = context
        self.put = context.control.put
        self.later_ms = 0
        windows, backlog = Windows(context.ledger, self.now_ms), Backlog(rig.broker, self.now_ms)
        pool, mirror = context.pool, context.mirror
        measures = Measures(rig.redis, context.balances, mirror, windows, pool, backlog, others)
        self.windows = windows
        self.backlog = backlog
        self.watcher = Watcher(context, measures)
        self.outbox = Outbox(context)

    @classmethod
    @contextlib.asynccontextmanager
    async def over(
        cls, rig: Rig, others: Mapping[RuleKind, Reading] | None = None, *, sealer: Sealer | None = None
    ) -> AsyncIterator[Self]:
        """On these stores, as soon as the mirror is whole."""
        scripts, mirror = Scripts(rig.redis), Mirror(rig.broker)
        balances, pool = Balances(rig.redis, scripts), Upstreams(rig.redis, scripts)
        context = Context(
            control=Control(rig.broker, Directory(rig.redis, balances, pool), mirror),
            mirror=mirror,
            ledger=Ledger(rig.config.clickhouse_url),
            balances=balances,
            standings=Standings(scripts, lambda _: ""),
            sealer=sealer or Sealer(sealing.new_key()),
            pool=pool,
            passwords=Passwords(),
            sessions=Sessions(rig.redis),
            senders=Senders(SenderSettings(allowed_networks=("127.0.0.1/32",))),
        )
        following = runtime.spawn(mirror.run(), name="mirror")
        try:
            await mirror.whole.wait()
            yield cls(rig, context, others or {})
        finally:
            following.cancel()
            context.senders.close()
            await context.ledger.close()

    def now_ms(self) -> int:
        """As windows see it."""
        return clock.unix_ms() + self.later_ms

    async def new_account(self, nanos: int = 10**9, **fields: Any) -> str:
        """An account with a credit."""
        made = account(ids.new_account_id(), **fields)
        await self.put(made, over=None, by=BY)
        await self.put(credit(made.id, nanos), over=None, by=BY)
        return made.id

    async def new_key(self, account_id: str) -> str:
        """A key of an account."""
        made = api_key(account_id)
        await self.put(made, over=None, by=BY)
        return made.id

    async def change(self, kind: type[Account] | type[ApiKey] | type[AlertRule], entity_id: str, **fields: Any) -> None:
        """The next state of an entity."""
        found = await self.context.control.find(kind, entity_id)
        assert found is not None
        await self.put(msgspec.structs.replace(found.entity, **fields), over=found, by=BY)

    async def new_channel(self, account_id: str, address: str) -> tuple[str, str]:
        """A webhook: its id and its secret."""
        name, secret = ids.new_id("chan"), targets.new_secret()
        target = ChannelTarget(kind="webhook", address=address, secret=secret)
        sealed = targets.seal(self.context.sealer, name, target)
        channel = Channel(
            id=name, account_id=account_id, name="hook", kind="webhook", sealed=sealed, hint="", created_at_ms=1
        )
        await self.put(channel, over=None, by=BY)
        return name, secret

    async def new_rule(self, kind: RuleKind, threshold: int, **fields: Any) -> AlertRule:
        """A rule; of the relay unless it has an account."""
        told: dict[str, Any] = {"account_id": "", "name": "test", "created_at_ms": 1, **fields}
        rule = AlertRule(id=ids.new_id("rule"), kind=kind, threshold=threshold, **told)
        await self.put(rule, over=None, by=BY)
        return rule

    def incidents(self, rule: AlertRule) -> list[Incident]:
        """Of a rule, in the order they were opened."""
        found = [one for one in self.context.mirror.all(Incident) if one.rule_id == rule.id]
        return sorted(found, key=lambda one: one.number)

    def stands(self, rule: AlertRule) -> list[bool]:
        """Whether each incident of a rule is open."""
        return [one.closed_at_ms is None for one in self.incidents(rule)]

    async def comes_to(self, rule: AlertRule, *stands: bool) -> None:
        """Turn by turn, until it stands so; then it stays."""

        async def reached() -> bool:
            await self.watcher.run()
            return self.stands(rule) == list(stands)

        await until(reached)
        await self.stays(rule, *stands)

    async def stays(self, rule: AlertRule, *stands: bool) -> None:
        """It stands so, and further turns change nothing."""
        for _ in range(3):
            await self.watcher.run()
            assert self.stands(rule) == list(stands)

    async def archived(self, account_id: str, rows: int) -> None:
        """Wait until the archive has them."""

        async def has() -> bool:
            return (await self.rig.archived(account_id))[0] == rows

        await until(has)
