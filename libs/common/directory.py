"""Accounts and keys as Redis holds them: written from CONTROL by admin and accounting, read by the gateway."""

from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.common import rediskeys
from libs.common.balances import Balances, CreditResult, StoreUnavailable
from libs.common.events import Account, ApiKey, ControlChanged, Credit


class Directory:
    """Applies control events and finds keys. Applying an event twice, or an old one late, changes nothing."""

    def __init__(self, redis: Redis, balances: Balances) -> None:
        self._redis = redis
        self._balances = balances

    async def apply(self, event: ControlChanged, version: int) -> CreditResult:
        """Bring Redis to the state of one control event; `version` is its stream sequence.

        For a credit: what `Balances.credit` answers (MISSING if the account has not been applied yet). Otherwise
        APPLIED, or DUPLICATE when that version or a newer one stands. Raises StoreUnavailable.
        """
        match event.entity:
            case Account() as account:
                applied = await self._put_account(account, version)
            case ApiKey() as key:
                applied = await self._put_key(key, version)
            case Credit() as credit:
                return await self._balances.credit(credit.account_id, credit.id, credit.amount_nanos)
        return "APPLIED" if applied else "DUPLICATE"

    async def find_key(self, sha256: str) -> tuple[str, str] | None:
        """(account id, key id) of a key we issued; None if we did not. Never changes. Raises StoreUnavailable."""
        try:
            value = await self._redis.get(rediskeys.key_hash(sha256))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        if value is None:
            return None
        account_id, _, key_id = _text(value).partition(" ")
        return account_id, key_id

    async def key_is_active(self, account_id: str, key_id: str) -> bool:
        """Whether key and account are active: enough for paths that cost nothing. Raises StoreUnavailable."""
        try:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hget(rediskeys.api_key(account_id, key_id), "status")
            pipeline.hget(rediskeys.account(account_id), "status")
            statuses = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        return bool(statuses == [b"active", b"active"])

    async def _put_account(self, account: Account, version: int) -> bool:
        fields = ["status", account.status, "multiplier_ppm", str(account.multiplier_ppm)]
        fields += ["on_disconnect", account.on_disconnect]
        for amount in ("?balance", "?held", "?spent", "?granted"):
            fields += [amount, "0"]
        return await self._balances.put_entity(rediskeys.account(account.id), version, fields)

    async def _put_key(self, key: ApiKey, version: int) -> bool:
        name = rediskeys.api_key(key.account_id, key.id)
        applied = await self._balances.put_entity(name, version, ["status", key.status])
        try:
            await self._redis.set(rediskeys.key_hash(key.sha256), f"{key.account_id} {key.id}", nx=True)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        return applied


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
