"""The application is built or says what is wrong with its settings; the command makes keys for secrets."""

import pytest
from starlette.routing import Route

from libs.common import sealing
from libs.common.config import AdminConfig, ConfigError
from services.admin import __main__ as command
from services.admin.app import OPERATIONS, PREFIX, create_app

TOKEN = "operator-token-0123"


@pytest.mark.parametrize(
    "secrets_key", ["", sealing.new_key(), f"{sealing.new_key()}, {sealing.new_key()}"], ids=["none", "one", "two"]
)
def test_every_operation_has_its_route(secrets_key: str) -> None:
    app = create_app(AdminConfig(admin_token=TOKEN, secrets_key=secrets_key))
    routes = {
        (method, route.path) for route in app.routes if isinstance(route, Route) for method in route.methods or ()
    }
    assert {(one.method, one.path if one.at_root else PREFIX + one.path) for one in OPERATIONS} <= routes


@pytest.mark.parametrize(
    "secrets_key",
    ["short-and-secret", sealing.new_key()[:-4], f"{sealing.new_key()},short-and-secret"],
    ids=["short", "cut off", "the second is short"],
)
def test_a_secrets_key_that_is_none_is_named_and_not_shown(secrets_key: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_SECRETS_KEY") as caught:
        create_app(AdminConfig(admin_token=TOKEN, secrets_key=secrets_key))
    assert "short-and-secret" not in str(caught.value) and secrets_key not in str(caught.value)


def test_a_token_that_is_too_short() -> None:
    with pytest.raises(ConfigError, match="RELAY_ADMIN_TOKEN"):
        create_app(AdminConfig(admin_token="short"))


def test_the_command_makes_a_new_key_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert [command.main(["new-secrets-key"]), command.main(["new-secrets-key"])] == [0, 0]
    first, second = capsys.readouterr().out.split()
    assert first != second
    secret = sealing.UpstreamSecret(api_key="sk-ant")
    assert sealing.Sealer(first).open("upst_1", sealing.Sealer(first).seal("upst_1", secret)) == secret


@pytest.mark.parametrize("arguments", [["serve"], ["new-secrets-key", "x"], ["--nothing"]])
def test_other_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
