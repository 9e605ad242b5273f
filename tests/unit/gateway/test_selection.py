"""Accounts stick to their credential, shares follow weights, and what comes or goes moves nobody else."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.selection import first_choice, for_account, least_loaded

ACCOUNTS: Final = [f"acct_{number:032x}" for number in range(2_000)]


@dataclass(frozen=True)
class Option:
    """A credential, as far as it matters here."""

    id: str
    weight: int = 1
    account_id: str = ""
    in_flight: int = 0


weights = st.lists(st.integers(1, 1_000), min_size=2, max_size=6)


def numbered(weights: list[int]) -> list[Option]:
    return [Option(f"upst_{number}", weight) for number, weight in enumerate(weights)]


def chosen(options: list[Option]) -> dict[str, Option]:
    return {account: first_choice(options, account) for account in ACCOUNTS[:200]}


@given(weights, st.randoms())
def test_the_choice_does_not_depend_on_the_order(weights: list[int], random: st.DataObject) -> None:
    options = numbered(weights)
    before = chosen(options)
    random.shuffle(options)  # type: ignore[attr-defined]
    assert chosen(options) == before


@given(weights, st.data())
def test_a_credential_that_goes_moves_only_its_own_accounts(weights: list[int], data: st.DataObject) -> None:
    options = numbered(weights)
    gone = data.draw(st.sampled_from(options))
    before, after = chosen(options), chosen([option for option in options if option != gone])
    assert all(after[account] == option for account, option in before.items() if option != gone)


@given(weights, st.data())
def test_more_weight_only_draws_accounts_to_it(weights: list[int], data: st.DataObject) -> None:
    options = numbered(weights)
    place = data.draw(st.integers(0, len(options) - 1))
    heavier = list(options)
    heavier[place] = Option(options[place].id, options[place].weight + data.draw(st.integers(1, 1_000)))
    after = chosen(heavier)
    for account, option in chosen(options).items():
        assert after[account].id in (option.id, heavier[place].id)


@given(st.lists(st.integers(1, 10), min_size=2, max_size=4))
@settings(max_examples=20, deadline=None)
def test_shares_follow_weights(weights: list[int]) -> None:
    options = numbered(weights)
    shares = Counter(first_choice(options, account).id for account in ACCOUNTS)
    for option in options:
        expected = len(ACCOUNTS) * option.weight / sum(weights)
        assert abs(shares[option.id] - expected) < 5 * expected**0.5 + 5


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=1, max_size=6), st.sampled_from(ACCOUNTS))
def test_the_least_loaded_has_the_fewest_for_its_weight(given_: list[tuple[int, int]], account: str) -> None:
    options = [Option(f"upst_{n}", weight, in_flight=busy) for n, (weight, busy) in enumerate(given_)]
    found = least_loaded(options, account)
    assert all(found.in_flight * other.weight <= other.in_flight * found.weight for other in options)


def test_where_all_are_idle_the_account_goes_where_it_would_stick() -> None:
    options = numbered([1, 5, 2])
    assert all(least_loaded(options, account) is first_choice(options, account) for account in ACCOUNTS[:200])


def test_dedicated_credentials_are_for_their_account_alone() -> None:
    shared, own, other = Option("upst_a"), Option("upst_b", account_id="acct_1"), Option("upst_c", account_id="acct_2")
    options, dedicated = [shared, own, other], {"acct_1", "acct_2", "acct_3"}
    assert for_account(options, "acct_1", dedicated) == [own]
    assert for_account(options, "acct_9", dedicated) == [shared]
    assert for_account(options, "acct_3", dedicated) == []  # its own one is out: prompts go nowhere else
