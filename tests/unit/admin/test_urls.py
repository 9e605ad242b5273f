"""URLs an operator may give: in one form, or refused without being repeated."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admin import urls
from services.admin.problems import Unprocessable


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com"),
        ("https://API.Anthropic.com/", "https://api.anthropic.com"),
        ("http://127.0.0.1:8080/claude/eu/", "http://127.0.0.1:8080/claude/eu"),
        ("http://[::1]:9/v1beta", "http://[::1]:9/v1beta"),
        ("http://gateway_1", "http://gateway_1"),
    ],
)
def test_a_base_has_one_form(text: str, kept: str) -> None:
    assert urls.base_url(text) == kept == urls.base_url(kept)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://proxy", "proxy:80"),
        ("https://proxy/", "proxy:443"),
        ("http://user:pass%40word@proxy.example:3128", "proxy.example:3128"),
        ("http://user:p:a!s$s@[::1]:1", "[::1]:1"),
    ],
)
def test_of_a_proxy_host_and_port_are_shown(text: str, shown: str) -> None:
    assert urls.proxy_url(text) == text
    assert urls.host_and_port(text) == shown


@given(st.text(alphabet="htps:/@[].%?# v1a\n\té", max_size=40) | st.text(max_size=40))
def test_no_text_is_more_than_refused(text: str) -> None:
    for read in (urls.base_url, urls.proxy_url):
        with contextlib.suppress(Unprocessable):
            assert read(text).startswith(("http://", "https://"))


@pytest.mark.parametrize("text", ["socks5://u:secret-word@h", "http://u:secret-word@h/x", "http://secret-word@[::zz]"])
def test_a_refused_url_is_not_repeated(text: str) -> None:
    for read in (urls.base_url, urls.proxy_url):
        with pytest.raises(Unprocessable) as caught:
            read(text)
        assert "secret-word" not in caught.value.detail
