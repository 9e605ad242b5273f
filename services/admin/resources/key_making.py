"""Makes keys: together or not at all, once for an Idempotency-Key, with a secret that the same call is answered again.

The secret of a key that was made under an Idempotency-Key comes from RELAY_SECRETS_KEY and the key's id, so that it can be shown
again although it is kept nowhere.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from libs.common import apikeys, ids
from libs.common.events import ApiKey
from libs.common.sealing import SecretsKeyMissing
from services.admin.control import Put
from services.admin.problems import Conflict
from services.admin.resource import Call, Context

_NO_SECRETS_KEY: Final = (
    "Idempotency-Key: RELAY_SECRETS_KEY is not set, and without it a secret cannot be answered twice."
)
_NOT_AGAIN: Final = (
    "This key was made before, and its secret cannot be shown again: RELAY_SECRETS_KEY has changed since. Rotate it."
)


class Made(msgspec.Struct, frozen=True):
    """A key and its secret. `version`: of a key that this very call has made; None: an earlier one has."""

    key: ApiKey
    secret: str
    version: int | None


Build = Callable[[int, str, str], Awaitable[ApiKey]]
"""Number, id and secret to the key."""


async def make(
    context: Context,
    call: Call,
    count: int,
    build: Build,
    *,
    request: str,
    reason: str,
    beside: Callable[[Sequence[ApiKey]], Sequence[Put]] = lambda _: (),
) -> list[Made]:
    """Make `count` keys, and what changes `beside` them. Raises Problem; then nothing was made."""
    # with who calls: a secret is shown again to whom it was shown, and to nobody who uses the same Idempotency-Key
    names = [call.derived_id("key", call.principal.actor, str(number)) for number in range(count)]
    if (repeated := await _repeated(context, names, request)) is not None:
        return repeated
    keys, secrets = [], []
    for number, name in enumerate(names):
        key_id = name or ids.new_key_id()
        secret = apikeys.derived(context.sealer.derive(key_id)[0]) if name else apikeys.generate()
        keys.append(await build(number, key_id, secret))
        secrets.append(secret)
    puts: list[Put] = [(key, None) for key in keys]
    try:
        found = await context.control.put_all(
            [*puts, *beside(keys)], by=call.by(reason, request if names[0] is not None else "")
        )
    except Conflict:  # it may be its own twin, sent at the same time, that was in the way
        if (repeated := await _repeated(context, names, request)) is not None:
            return repeated
        raise
    return [Made(key, secret, one.version) for key, secret, one in zip(keys, secrets, found, strict=False)]


async def _repeated(context: Context, names: Sequence[str | None], request: str) -> list[Made] | None:
    """What this call has made before; None if it has not. Raises Unprocessable for another request with the same key."""
    if names[0] is None:
        return None
    try:
        context.sealer.derive("")
    except SecretsKeyMissing:
        raise Conflict(_NO_SECRETS_KEY) from None
    if await context.control.first(ApiKey, names[0], request) is None:
        return None
    found = [await context.control.first(ApiKey, str(name), request) for name in names]
    return [Made(key, _secret(context, key), None) for key in found if key is not None]


def _secret(context: Context, key: ApiKey) -> str:
    for bits in context.sealer.derive(key.id):
        secret = apikeys.derived(bits)
        if apikeys.hash_key(secret.encode()) == key.sha256:
            return secret
    raise Conflict(_NOT_AGAIN)
