"""Accounts, members, keys, upstreams and price books as Redis holds them: written from CONTROL by admin and accounting."""

from redis.exceptions import RedisError

from libs.common import addresses, limits, rediskeys, zones
from libs.common.balances import Balances, CreditResult
from libs.common.books import Books, PutResult
from libs.common.events import (
    Account,
    ApiKey,
    ControlChanged,
    Credit,
    Member,
    PublishedBook,
    Repair,
    UpstreamCredential,
)
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts, StoreUnavailable
from libs.common.upstreams import Upstreams

ApplyResult = CreditResult | PutResult


class Directory:
    """Applies control events and finds keys. Applying an event twice, or an old one late, changes nothing."""

    def __init__(
        self, redis: RedisClient, balances: Balances, upstreams: Upstreams, scripts: Scripts | None = None
    ) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)
        self._balances = balances
        self._upstreams = upstreams
        self._books = Books(self._scripts)

    async def apply(self, event: ControlChanged, version: int) -> ApplyResult:
        """Bring Redis to the state of one control event; `version` is its stream sequence.

        For a credit: what `Balances.credit` answers (MISSING if the account has not been applied yet); for a price book: what
        `Books.put` does. Otherwise
        APPLIED, or DUPLICATE when that version or a newer one stands. Raises StoreUnavailable.
        """
        match event.entity:
            case Account() as account:
                applied = await self._put_account(account, version)
            case Member() as member:
                applied = await self._put_member(member, version)
            case ApiKey() as key:
                applied = await self._put_key(key, version)
            case UpstreamCredential() as credential:
                applied = await self._upstreams.put(credential, version)
            case PublishedBook() as book:
                return await self._books.put(book)
            case Credit() as credit:
                return await self._balances.credit(credit.account_id, credit.id, credit.amount_nanos)
            case Repair() as repair:
                return await self._balances.repair(repair)
            case _:
                return "APPLIED"  # the control plane alone works with it
        return "APPLIED" if applied else "DUPLICATE"

    async def find_key(self, sha256: str) -> tuple[str, str] | None:
        """(account id, key id) of a key we issued; None if we did not. Never changes. Raises StoreUnavailable."""
        # a script, because scripts share connections: five hundred callers with a key that is new here are one pipeline
        value = await self._scripts.call("find_key", 1, rediskeys.key_hash(sha256))
        if value is None:
            return None
        account_id, _, key_id = value.decode().partition(" ")
        return account_id, key_id

    async def _put_account(self, account: Account, version: int) -> bool:
        fields = ["status", account.status, "multiplier_ppm", str(account.multiplier_ppm)]
        fields += ["on_disconnect", account.on_disconnect, "zone", zones.packed(account.time_zone)]
        fields += ["limits", limits.packed(account.limits, limits.ACCOUNT_DEFAULTS)]
        for amount in ("?balance", "?held", "?spent", "?granted"):
            fields += [amount, "0"]
        return await self._balances.put_entity(rediskeys.account(account.id), version, fields)

    async def _put_member(self, member: Member, version: int) -> bool:
        status = "active" if member.status == "invited" else member.status
        fields = ["status", status, "limits", limits.packed(member.limits)]
        return await self._balances.put_entity(rediskeys.member(member.account_id, member.id), version, fields)

    async def _put_key(self, key: ApiKey, version: int) -> bool:
        fields = ["status", key.status, "member_id", key.member_id, "limits", limits.packed(key.limits)]
        fields += ["models", f",{','.join(key.models)}," if key.models else ""]
        fields += ["addresses", addresses.address_ranges(key.ip_allowlist)]
        fields += ["expires_at_ms", "" if key.expires_at_ms is None else str(key.expires_at_ms)]
        applied = await self._balances.put_entity(rediskeys.api_key(key.account_id, key.id), version, fields)
        try:
            await self._redis.set(rediskeys.key_hash(key.sha256), f"{key.account_id} {key.id}", nx=True)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        return applied
