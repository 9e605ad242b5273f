"""What is a channel and what is not; settings; and that no sentence repeats what it was given."""

import base64

import pytest

from services.admin.notices import send_mail
from services.admin.notices.notices import ChannelTarget, Kind
from services.admin.notices.senders import Senders, SenderSettings, check_target
from tests.unit.admin.test_notices import notice

WHSEC = "whsec_" + base64.b64encode(b"k" * 24).decode()
BOT = "123456:" + "a" * 35
SLACK = "https://hooks.slack.com/services/T01/B02/c4n4ry"
FEISHU = "https://open.feishu.cn/open-apis/bot/v2/hook/c4n4ry-1"
WECOM = "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=c4n4ry-2"
DINGTALK = "https://oapi.dingtalk.com/robot/send?access_token=c4n4ry3"
SERVER = send_mail.mail_server("smtp://mail.example", "Relay <relay@example.com>")


def target(kind: Kind, address: str, secret: str = "") -> ChannelTarget:
    return ChannelTarget(kind=kind, address=address, secret=secret)


@pytest.mark.parametrize(
    "channel",
    [
        target("webhook", "https://example.com", WHSEC),
        target("webhook", "https://EXAMPLE.com:8443/a/b?c=%20&d", WHSEC),
        target("webhook", "https://[2606:4700::1111]/x", WHSEC),
        target("webhook", "https://8.8.8.8/", "whsec_" + base64.b64encode(b"k" * 64).decode()),
        target("email", "o'neil+alerts@mail.example.com"),
        target("slack", SLACK),
        target("feishu", FEISHU),
        target("wecom", WECOM),
        target("dingtalk", DINGTALK),
        target("dingtalk", DINGTALK, "SECabc123"),
        target("telegram", "-1001234567890", BOT),
        target("telegram", "@my_channel", BOT),
    ],
)
def test_a_channel(channel: ChannelTarget) -> None:
    check_target(channel)


BAD = [
    *[
        target("webhook", address, WHSEC)
        for address in (
            "", "c4n4ry", "ftp://c4n4ry.example/", "http://c4n4ry.example/", "https://u:c4n4ry@example.com/",
            "https://example.com/#c4n4ry", "https://example.com:0/c4n4ry", "https://example.com:65536/c4n4ry",
            "https://127.0.0.1/c4n4ry", "https://[::1]/c4n4ry", "https://[::ffff:10.0.0.1]/c4n4ry", "https://[1.1.1.1]x/",
            "https://[::zz]/c4n4ry", "https://169.254.169.254/c4n4ry", "https://example.com/a b", "https://example.com/\r\nc4n4ry",
            "https://example.com\\@c4n4ry/", "https://éc4n4ry.example/", "https://example.com/" + "c4n4ry" * 400,
            "https://example.com/c4n4ry\n",
        )
    ],
    *[
        target("webhook", "https://example.com/", secret)
        for secret in ("", "c4n4ry", "whsec_", "whsec_c4n4ry", WHSEC + "!", "whsec_" + "A" * 33, "whsec_" + "A" * 200)
    ],
    *[
        target("email", address)
        for address in (
            "", "c4n4ry", "a@b@c4n4ry", "c4n4ry@", "@c4n4ry", "a c4n4ry@example.com", "c4n4ry@example.com\r\nBcc: x@example.com",
            "c4n4ry@example.com,x@example.com", "C <c4n4ry@example.com>", "c4n4ry@exa_mple", "é@c4n4ry.example",
            "c4n4ry@" + "a." * 150 + "example", "c4n4ry@example.com\n",
        )
    ],
    target("email", "a@example.com", "c4n4ry"),
    *[
        target("slack", address)
        for address in (
            SLACK + "/x", SLACK + "?x=1", SLACK + "\n", SLACK.replace("https", "http"), SLACK.replace(".com", ".com.evil"),
            SLACK.replace("services", "workflows"), "slack://T01/B02/c4n4ry", "json://c4n4ry.example", FEISHU,
        )
    ],
    target("slack", SLACK, "c4n4ry"),
    target("feishu", FEISHU + "/../c4n4ry"),
    target("feishu", FEISHU, "c4n4ry"),
    target("wecom", WECOM + "&debug=1"),
    target("dingtalk", DINGTALK + "&sign=c4n4ry"),
    target("dingtalk", DINGTALK, "c4n4ry-"),
    target("telegram", "-100", ""),
    target("telegram", "-100", "c4n4ry"),
    target("telegram", "-100", BOT + "/../c4n4ry"),
    target("telegram", "c4n4ry,@other", BOT),
    target("telegram", "", BOT),
]  # fmt: skip


@pytest.mark.parametrize("channel", BAD)
def test_no_channel_and_a_sentence_that_repeats_nothing(channel: ChannelTarget) -> None:
    with pytest.raises(ValueError) as caught:
        check_target(channel)
    sentence = str(caught.value)
    assert sentence[0].isupper() and "c4n4ry" not in sentence and "\n" not in sentence
    assert not isinstance(caught.value, UnicodeError)


def test_http_is_for_networks_an_operator_allows() -> None:
    plain = target("webhook", "http://10.0.0.5/x", WHSEC)
    check_target(plain, SenderSettings(allowed_networks=("10.0.0.0/8",)))
    with pytest.raises(ValueError):
        check_target(plain)
    with pytest.raises(ValueError, match="not public"):
        check_target(plain, SenderSettings(allowed_networks=("10.9.0.0/16",)))


@pytest.mark.parametrize(
    ("url", "port", "security", "user", "password"),
    [
        ("smtp://mail.example", 25, "smtp", "", ""),
        ("smtp://u%40x:p%2Fw@mail.example:2525/", 2525, "smtp", "u@x", "p/w"),
        ("smtp://mail.example?starttls=1", 587, "starttls", "", ""),
        ("smtp://mail.example?starttls=0", 25, "smtp", "", ""),
        ("smtps://u:p4ss@mail.example", 465, "smtps", "u", "p4ss"),
    ],
)
def test_a_mail_server_is_read_from_its_url(url: str, port: int, security: str, user: str, password: str) -> None:
    server = send_mail.mail_server(url, "relay@example.com")
    assert (server.host, server.port, server.security) == ("mail.example", port, security)
    assert (server.user, server.password) == (user, password)
    assert (password or "none") not in repr(server)


@pytest.mark.parametrize(
    ("url", "sender"),
    [
        ("http://u:c4n4ry@mail.example", "a@example.com"),
        ("smtp://", "a@example.com"),
        ("smtp://u:c4n4ry@mail.example:x", "a@example.com"),
        ("smtp://u:c4n4ry@mail.example?tls=1", "a@example.com"),
        ("smtp://u:c4n4ry@mail.example/x", "a@example.com"),
        ("smtp://u:c4n4ry@mail.example?starttls", "a@example.com"),
        ("smtp://mail.example", ""),
        ("smtp://mail.example", "a@example.com\r\nBcc: c4n4ry@example.com"),
    ],
)
def test_settings_that_cannot_be_read_are_refused_and_not_repeated(url: str, sender: str) -> None:
    with pytest.raises(ValueError) as caught:
        Senders(SenderSettings(smtp_url=url, smtp_from=sender))
    assert "c4n4ry" not in str(caught.value)
    assert "c4n4ry" not in repr(SenderSettings(smtp_url=url, smtp_from=sender))


def test_a_message_is_the_same_whenever_it_is_composed() -> None:
    message = send_mail.compose(SERVER, "a@example.com", notice(title="余额不足"))
    assert message["Message-ID"] == "<ntc_01@example.com>"
    assert (message["From"], message["To"]) == ("Relay <relay@example.com>", "a@example.com")
    assert message["Subject"] == "余额不足"
    assert "余额不足" not in message.as_bytes().decode("ascii")
    assert message.get_content().startswith("余额不足\n\nTop up,\n")


def test_a_line_end_never_reaches_a_header() -> None:
    """Addresses and titles are refused before; this is the second fence."""
    for address in ("a@example.com\r\nBcc: x@example.com", "a@example.com\nX: y"):
        with pytest.raises(ValueError):
            send_mail.compose(SERVER, address, notice())
