"""Who calls: the admin token, service tokens and sessions; and nobody by default."""

import pytest
from nats.aio.client import Client
from starlette.requests import Request

from libs.common import events, redisclient
from libs.common.entities import Operator, ServiceToken, SignIn
from libs.common.events import Account, ControlChanged, Entity, Member
from services.admin import sessions
from services.admin.access import Principal
from services.admin.authentication import Authentication, check_account
from services.admin.mirror import Mirror
from services.admin.problems import Missing, Unauthorized, Unavailable
from services.admin.sessions import Session, Sessions

pytestmark = pytest.mark.anyio
TOKEN = "operator-token-0123"
HEX = "0" * 31
ACCOUNT = Account(id=f"acct_{HEX}1", name="a", created_at_ms=1)
OPERATOR = Operator(id=f"oper_{HEX}1", name="o", email="o@x.org", role="viewer", created_at_ms=1, status="active")
MEMBER = Member(id=f"memb_{HEX}1", account_id=ACCOUNT.id, name="m", created_at_ms=1, role="billing")


class Remembered(Sessions):
    """Sessions in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Session] = {}

    async def find(self, token_sha256: str) -> Session | None:
        return self.kept.get(token_sha256)


class Desk:
    """Knows these entities and sessions."""

    def __init__(self, *entities: Entity) -> None:
        self.mirror = Mirror(Client())
        self.mirror.whole.set()
        self.sessions = Remembered()
        self.number = 0
        for entity in entities:
            self.take(entity)

    def take(self, entity: Entity) -> None:
        self.number += 1
        change = ControlChanged(entity=entity, actor="", reason="", at_ms=1)
        self.mirror.take(events.encode_control(change), self.number)

    def session(self, owner_id: str, began_at_ms: int = 100) -> str:
        token = sessions.PREFIX + "x" * 40
        self.sessions.kept[sessions.sha256(token)] = Session(owner_id, began_at_ms, "127.0.0.1")
        return token

    async def ask(self, token: str, admin_token: str = TOKEN) -> Principal:
        headers = {"authorization": f"Bearer {token}".encode()}
        return await Authentication(self.mirror, self.sessions, admin_token).principal(request(headers))


def request(headers: dict[str, bytes]) -> Request:
    return Request({"type": "http", "headers": [(name.encode(), value) for name, value in headers.items()]})


def service_token(**changes: object) -> tuple[str, ServiceToken]:
    text = "rst_" + "y" * 40
    fields = {
        "id": f"tok_{HEX}1", "name": "t", "created_at_ms": 1, "sha256": sessions.sha256(text), "hint": "",
        "role": "viewer", "scopes": ("usage:read",),
    }  # fmt: skip
    return text, ServiceToken(**fields | changes)  # type: ignore[arg-type]


async def test_the_admin_token() -> None:
    desk = Desk()
    for header in (f"Bearer {TOKEN}", f"bEARER  {TOKEN}\t"):
        found = await Authentication(desk.mirror, desk.sessions, TOKEN).principal(
            request({"authorization": header.encode()})
        )
        assert (found.role, found.account_id, found.scopes) == ("operator:owner", "", None)
    with pytest.raises(Unauthorized):
        await desk.ask("", admin_token="")
    with pytest.raises(Unauthorized):
        await desk.ask(TOKEN, admin_token="")


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        TOKEN.encode(),
        b"Basic x",
        b"Bearer \xff",
        f"Bearer {TOKEN}\xa0".encode("latin-1"),
    ],
)
async def test_tokens_that_are_none(header: bytes | None) -> None:
    desk = Desk()
    with pytest.raises(Unauthorized):
        await Authentication(desk.mirror, desk.sessions, TOKEN).principal(
            request({} if header is None else {"authorization": header})
        )


async def test_service_tokens() -> None:
    text, token = service_token()
    desk = Desk(token, ACCOUNT)
    assert await desk.ask(text) == Principal(actor=token.id, role="operator:viewer", scopes=frozenset({"usage:read"}))
    text, token = service_token(account_id=ACCOUNT.id, role="billing")
    desk.take(token)
    assert (await desk.ask(text)).role == "account:billing"
    for changes in ({"status": "deleted"}, {"expires_at_ms": 5}):
        desk.take(service_token(**changes)[1])
        with pytest.raises(Unauthorized):
            await desk.ask(text)
    with pytest.raises(Unauthorized):
        await desk.ask("rst_" + "z" * 40)


async def test_sessions_end_with_what_they_rest_on() -> None:
    member = MEMBER
    desk = Desk(OPERATOR, ACCOUNT, member)
    assert (await desk.ask(desk.session(OPERATOR.id))).role == "operator:viewer"
    found = await desk.ask(desk.session(member.id))
    assert (found.role, found.account_id) == ("account:billing", ACCOUNT.id)
    changed = {name: getattr(member, name) for name in Member.__struct_fields__}
    for change in ({"status": "disabled"}, {"status": "invited"}, {"sign_in": SignIn(sessions_after_ms=101)}):
        desk.take(Member(**changed | change))
        with pytest.raises(Unauthorized):
            await desk.ask(desk.session(member.id))
    desk.take(member)
    desk.take(Account(id=ACCOUNT.id, name="a", created_at_ms=1, status="disabled"))
    with pytest.raises(Unauthorized, match="not active"):
        await desk.ask(desk.session(member.id))
    with pytest.raises(Unauthorized):
        await desk.ask("rss_" + "n" * 40)


async def test_a_mirror_that_is_not_whole_lets_nobody_in_and_turns_nobody_away() -> None:
    text, token = service_token()
    desk = Desk(token)
    desk.mirror.whole.clear()
    with pytest.raises(Unavailable):
        await desk.ask(text)


async def test_another_accounts_paths_do_not_exist() -> None:
    mine = Principal(actor="", role="account:owner", account_id=ACCOUNT.id)
    check_account(mine, ACCOUNT.id)
    check_account(mine, "")
    check_account(Principal(actor="", role="operator:viewer"), ACCOUNT.id)
    with pytest.raises(Missing):
        check_account(mine, "acct_" + "f" * 32)


async def test_sessions_need_redis() -> None:
    nowhere = Sessions(redisclient.connect("redis://127.0.0.1:1/0"))
    with pytest.raises(Unavailable):
        await nowhere.find("x")
    with pytest.raises(Unavailable):
        await nowhere.count_try("a", "b", 3)
