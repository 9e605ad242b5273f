"""Addresses and secrets of channels: sealed for one channel, and shown by nothing."""

import base64

import pytest

from libs.common.entities import Channel
from libs.common.sealing import CannotOpen, Sealer, new_key
from services.admin.notices import targets
from services.admin.notices.notices import ChannelTarget, Kind
from services.admin.notices.senders import check_target

HOOK = ChannelTarget(kind="webhook", address="https://hooks.example/x", secret="s")


def channel(sealed: str, channel_id: str = "chan_1") -> Channel:
    return Channel(id=channel_id, account_id="", name="n", kind="webhook", sealed=sealed, hint="", created_at_ms=1)


def test_it_opens_as_it_was_and_for_that_channel_alone() -> None:
    sealer = Sealer(new_key())
    sealed = targets.seal(sealer, "chan_1", HOOK)
    assert "hooks" not in sealed
    assert targets.opened(sealer, channel(sealed)) == HOOK
    for other in (channel(sealed, "chan_2"), channel("")):
        with pytest.raises(CannotOpen):
            targets.opened(sealer, other)


def test_a_new_secret_is_one_that_signs() -> None:
    secret = targets.new_secret()
    assert secret != targets.new_secret()
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    check_target(ChannelTarget(kind="webhook", address=HOOK.address, secret=secret))


@pytest.mark.parametrize(
    ("kind", "address", "hint"),
    [
        ("email", "somebody@example.com", "s…@example.com"),
        ("telegram", "-100123456", "…3456"),
        ("slack", "https://hooks.slack.com/services/T1/B2/secret", "hooks.slack.com…cret"),
        ("webhook", "https://[2a00::1]:8443/path?x=1", "2a00::1…?x=1"),
    ],
)
def test_a_hint_tells_them_apart(kind: Kind, address: str, hint: str) -> None:
    assert targets.hint(kind, address) == hint
