"""Secrets of upstream credentials: opened by who has the key, in the place they were sealed for, and shown by nothing."""

from typing import Final

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from libs.common.config import ConfigError
from libs.common.sealing import CannotOpen, Sealer, SecretsKeyMissing, UpstreamSecret, new_key

KEY: Final = new_key()
SECRET: Final = UpstreamSecret(api_key="sk-ant-api03-secret", proxy_url="http://user:word@proxy:3128")


@given(st.text(), st.text(), st.text())
def test_what_is_sealed_opens_as_it_was(credential_id: str, api_key: str, proxy_url: str) -> None:
    secret = UpstreamSecret(api_key=api_key, proxy_url=proxy_url)
    try:
        sealed = Sealer(KEY).seal(credential_id, secret)
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    assert Sealer(KEY).open(credential_id, sealed) == secret


def test_a_sealed_text_says_nothing_and_is_new_each_time() -> None:
    sealed = [Sealer(KEY).seal("upst_1", SECRET) for _ in range(2)]
    assert sealed[0] != sealed[1]
    for text in sealed:
        assert text.isascii() and text.isprintable()
        assert "sk-ant" not in text and "proxy" not in text


def test_one_credential_cannot_be_put_in_the_place_of_another() -> None:
    with pytest.raises(CannotOpen, match="another credential"):
        Sealer(KEY).open("upst_2", Sealer(KEY).seal("upst_1", SECRET))


@given(st.text(), st.text())
def test_any_text_may_be_sealed(entity_id: str, text: str) -> None:
    try:
        sealed = Sealer(KEY).seal_text(entity_id, text)
    except UnicodeEncodeError:
        return
    assert Sealer(KEY).open_text(entity_id, sealed) == text
    with pytest.raises(CannotOpen):
        Sealer(KEY).open_text(entity_id + "2", sealed)


def test_a_credential_is_no_text_and_a_text_no_credential() -> None:
    sealer = Sealer(KEY)
    with pytest.raises(CannotOpen):
        sealer.open_text("upst_1", sealer.seal("upst_1", SECRET))
    with pytest.raises(CannotOpen):
        sealer.open("upst_1", sealer.seal_text("upst_1", "text"))
    for shut in (Sealer(""), Sealer(new_key())):
        with pytest.raises(SecretsKeyMissing):
            shut.open_text("chan_1", sealer.seal_text("chan_1", "text"))


def test_while_keys_change_the_first_one_seals_and_each_opens() -> None:
    new = new_key()
    both = Sealer(f"{new}, {KEY}")
    assert both.open("upst_1", Sealer(KEY).seal("upst_1", SECRET)) == SECRET
    assert Sealer(new).open("upst_1", both.seal("upst_1", SECRET)) == SECRET
    with pytest.raises(CannotOpen):
        Sealer(KEY).open("upst_1", both.seal("upst_1", SECRET))


@pytest.mark.parametrize("keys", ["", " ", ","])
def test_without_a_key_nothing_is_sealed_or_opened(keys: str) -> None:
    with pytest.raises(SecretsKeyMissing, match="RELAY_SECRETS_KEY is not set"):
        Sealer(keys).seal("upst_1", SECRET)
    with pytest.raises(SecretsKeyMissing, match="RELAY_SECRETS_KEY is not set"):
        Sealer(keys).open("upst_1", "x")


@pytest.mark.parametrize(
    "sealed",
    ["", "x", "ünlesbar", pytest.param(Fernet(KEY).encrypt(b"{}").decode(), id="another text"), "gAAAA" + "A" * 95],
)
def test_what_was_never_sealed_does_not_open(sealed: str) -> None:
    with pytest.raises(CannotOpen):
        Sealer(KEY).open("upst_1", sealed)


@pytest.mark.parametrize(
    "keys",
    ["secret-but-short", KEY + ",nonsense!", "ü" * 44, KEY[:-2]],
    ids=["short", "the second is none", "of other letters", "cut off"],
)
def test_what_is_no_key_is_refused_and_not_shown(keys: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_SECRETS_KEY holds what is no key") as caught:
        Sealer(keys)
    assert keys not in str(caught.value)


def test_failures_and_secrets_show_nothing() -> None:
    other = Sealer(new_key()).seal("upst_1", SECRET)
    with pytest.raises(CannotOpen) as caught:
        Sealer(KEY).open("upst_1", other)
    for hidden in (KEY, other, "sk-ant", "word"):
        assert hidden not in str(caught.value)
        assert hidden not in repr(SECRET)
