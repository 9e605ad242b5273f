"""Sends a notice to a chat: Apprise knows how Slack, Telegram, Feishu, WeCom and DingTalk want to be written to.

Of Apprise five plugins are used, and none of its URLs: a customer's URL must have the one form that the service itself
gives, only the tokens inside it are taken, and the plugin has its own host. The plugins call `requests`; in its place they
find `_Wire`, which follows no redirects and no proxies of the environment, reads a bounded answer and keeps it: Apprise
tells only yes or no, and yes also for an answer in which WeCom or DingTalk says no. Where a plugin came to send by another
way, nothing would be kept, and what is not seen to arrive is undelivered.

What cannot be set: a service's name is resolved by the system and not fenced (the hosts are fixed), and the head of its
answer is bounded by http.client (100 headers) and in time by the thread's limit alone.
"""

import functools
import html
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import requests
from apprise.asset import AppriseAsset
from apprise.common import NotifyFormat, NotifyType
from apprise.plugins import base, dingtalk, feishu, slack, telegram, wecombot

from services.admin.notices.notices import ChannelTarget, Kind, Notice, Undelivered, refusal
from services.admin.notices.send_threads import SendThreads

LIMIT_S: Final = 15.0
ANSWER_BYTES_MAX: Final = 64 * 1024
_CONNECT_S: Final = 4.0
_READ_S: Final = 5.0
_BODY_BYTES_MAX: Final = 1_400
"""WeCom takes 2,048 bytes, a title of 200 characters included, and Apprise counts characters."""
_THREADS: Final = "send-chat"
_APP: Final = "claude-relay"
_DASHED: Final = "[A-Za-z0-9_-]{1,128}"
_WORD: Final = "[A-Za-z0-9]{1,128}"
_SERVICE: Final = "The chat service"
_TYPES: Final = {"warning": NotifyType.WARNING, "critical": NotifyType.FAILURE, "error": NotifyType.FAILURE}
_BUSY: Final = frozenset({-1, 11232, 45009, 130101, 99991400})
"""Answers of WeCom, Feishu and DingTalk that mean: later."""


class _Form(msgspec.Struct, frozen=True):
    """What a customer gives for a chat."""

    address: re.Pattern[str]
    address_like: str
    proof: re.Pattern[str]
    proof_like: str


def _robot(pattern: str, like: str, proof: str = "", proof_like: str = "has no secret") -> _Form:
    return _Form(re.compile(pattern), like, re.compile(proof), proof_like)


_FORMS: Final[Mapping[Kind, _Form]] = {
    "slack": _robot(
        rf"https://hooks\.slack\.com/services/({_WORD})/({_WORD})/({_WORD})", "https://hooks.slack.com/services/T…/B…/…"
    ),
    "feishu": _robot(
        rf"https://open\.feishu\.cn/open-apis/bot/v2/hook/({_DASHED})", "https://open.feishu.cn/open-apis/bot/v2/hook/…"
    ),
    "wecom": _robot(
        rf"https://qyapi\.weixin\.qq\.com/cgi-bin/webhook/send\?key=({_DASHED})",
        "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=…",
    ),
    "dingtalk": _robot(
        rf"https://oapi\.dingtalk\.com/robot/send\?access_token=({_WORD})",
        "https://oapi.dingtalk.com/robot/send?access_token=…",
        f"({_WORD})?",
        "is signed with SEC and letters and digits, or not at all",
    ),
    "telegram": _robot(
        "(-?[0-9]{1,20}|@[A-Za-z][A-Za-z0-9_]{3,63})",
        "the id of a chat, or @ and its name",
        "([0-9]{5,20}:[A-Za-z0-9_-]{30,100})",
        "needs its bot's token: digits, a colon, letters and digits",
    ),
}


def check(target: ChannelTarget) -> None:
    """Raises ValueError for what is not the form of its service. It does not repeat what was given."""
    form = _FORMS[target.kind]
    if form.address.fullmatch(target.address) is None:
        raise ValueError(f"The address of a {target.kind} channel is {form.address_like}")
    if form.proof.fullmatch(target.secret) is None:
        raise ValueError(f"A {target.kind} channel {form.proof_like}.")


class ChatSender:
    """Sends to chats. Raises Undelivered."""

    def __init__(self) -> None:
        self._threads = SendThreads(_THREADS)

    async def send(self, target: ChannelTarget, notice: Notice) -> None:
        """The service has said that it took the message. Of a target that `check` lets pass."""
        late = f"{_SERVICE} did not answer within {LIMIT_S:.0f} seconds."
        await self._threads.run(functools.partial(_send, target, notice), limit_s=LIMIT_S, late=late)

    def close(self) -> None:
        """Forget what has not begun."""
        self._threads.close()


class _Answer(msgspec.Struct, frozen=True):
    """As much of a response as the plugins look at."""

    status_code: int
    content: bytes


class _Wire:
    """What the plugins know as the module `requests`."""

    codes = requests.codes
    RequestException = requests.RequestException

    def __init__(self) -> None:
        self._kept = threading.local()

    def begin(self) -> None:
        """Forget the answers of this thread."""
        self._kept.answers = []

    def answers(self) -> list[_Answer]:
        """Of this thread, since it began."""
        return list(self._kept.answers)

    def post(self, url: str, **options: Any) -> _Answer:
        """As `requests.post`, within our limits."""
        return self.request("POST", url, **options)

    def request(self, method: str, url: str, **options: Any) -> _Answer:
        """As `requests.request`, within our limits."""
        ours = {"allow_redirects": False, "verify": True, "stream": True, "timeout": (_CONNECT_S, _READ_S)}
        with requests.Session() as session:
            session.trust_env = False
            with session.request(method, url, **{**options, **ours}) as response:
                answer = _Answer(response.status_code, _bounded(response))
        self._kept.answers.append(answer)
        return answer


def _bounded(response: requests.Response) -> bytes:
    """The content, as far as it is read."""
    content, until = b"", time.monotonic() + _READ_S
    for chunk in response.iter_content(4096):
        content += chunk
        if len(content) > ANSWER_BYTES_MAX or time.monotonic() > until:
            break
    return content[:ANSWER_BYTES_MAX]


_wire: Final = _Wire()
for _plugin in (dingtalk, feishu, slack, telegram, wecombot):
    vars(_plugin)["requests"] = _wire


class _DingTalk(dingtalk.NotifyDingTalk):
    def get_signature(self) -> tuple[str, str]:
        """Apprise 2.3 quotes the signature, and `requests` quotes it again: DingTalk would answer that it does not match."""
        timestamp, signature = super().get_signature()
        return timestamp, self.unquote(signature)


def _send(target: ChannelTarget, notice: Notice) -> None:
    plugin = _plugin_of(target)
    _wire.begin()
    kind = NotifyType.SUCCESS if notice.kind.endswith(".closed") else _TYPES.get(notice.severity, NotifyType.INFO)
    body = notice.lines().encode()[:_BODY_BYTES_MAX].decode(errors="ignore")
    taken = plugin.notify(notify_type=kind, **_written(target.kind, notice.title, body))
    answers = _wire.answers()
    if not answers:
        raise Undelivered(f"{_SERVICE} cannot be reached.", retryable=True)
    _judge(answers[-1])
    if not taken:
        raise Undelivered(f"{_SERVICE} did not take the message.", retryable=False)


def _written(kind: Kind, title: str, body: str) -> dict[str, Any]:
    """Apprise 2.3 takes text for HTML when its Telegram plugin is called without the rest of it: names could be tags."""
    if kind != "telegram":
        return {"title": title, "body": body, "body_format": NotifyFormat.TEXT}
    lines = "<br/>".join(html.escape(line) for line in body.split("\n"))
    return {"title": html.escape(title), "body": lines, "body_format": NotifyFormat.HTML}


def _judge(answer: _Answer) -> None:
    """Raises Undelivered. Feishu says how it went in `code`, WeCom and DingTalk in `errcode`, and all with status 200."""
    if answer.status_code != 200:
        raise refusal(answer.status_code)
    try:
        said = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # Slack's `ok`, of which Apprise knows
    codes = [said.get("errcode"), said.get("code")] if isinstance(said, dict) else []
    for code in codes:
        if isinstance(code, int) and code != 0:
            raise Undelivered(f"{_SERVICE} refused the message (code {code}).", retryable=code in _BUSY)


def _plugin_of(target: ChannelTarget) -> base.NotifyBase:
    match = _FORMS[target.kind].address.fullmatch(target.address)
    assert match is not None
    return _MAKERS[target.kind](*match.groups(), secret=target.secret, asset=_asset())


def _asset() -> AppriseAsset:
    """No file on disk, no trace of the library in the message."""
    return AppriseAsset(app_id=_APP, app_desc=_APP, http_redirects=False, storage_mode="memory")


def _slack(a: str, b: str, c: str, *, secret: str, asset: AppriseAsset) -> base.NotifyBase:
    return slack.NotifySlack(
        token_a=a, token_b=b, token_c=c, format="text", include_image=False, include_footer=False, asset=asset
    )


def _telegram(chat: str, *, secret: str, asset: AppriseAsset) -> base.NotifyBase:
    return telegram.NotifyTelegram(bot_token=secret, targets=[chat], detect_owner=False, asset=asset)


def _feishu(token: str, *, secret: str, asset: AppriseAsset) -> base.NotifyBase:
    return feishu.NotifyFeishu(token=token, format="text", asset=asset)


def _wecom(key: str, *, secret: str, asset: AppriseAsset) -> base.NotifyBase:
    return wecombot.NotifyWeComBot(key=key, asset=asset)


def _dingtalk(token: str, *, secret: str, asset: AppriseAsset) -> base.NotifyBase:
    return _DingTalk(token=token, secret=secret or None, format="text", asset=asset)


_MAKERS: Final[Mapping[Kind, Callable[..., base.NotifyBase]]] = {
    "slack": _slack,
    "telegram": _telegram,
    "feishu": _feishu,
    "wecom": _wecom,
    "dingtalk": _dingtalk,
}


def _is_of_others(record: logging.LogRecord) -> bool:
    """urllib3 logs paths, and a path of a chat is a token."""
    return not (record.threadName or "").startswith(_THREADS)


logging.getLogger("urllib3.connectionpool").addFilter(_is_of_others)
logging.getLogger("apprise").addFilter(_is_of_others)
