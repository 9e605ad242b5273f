"""Who may do what, typed by hand: a change of roles must be made twice, in services/admin and here."""

from typing import Final

from services.admin.access import Role

LETTERS: Final[dict[str, Role]] = {
    "O": "operator:owner",
    "F": "operator:finance",
    "S": "operator:support",
    "V": "operator:viewer",
    "o": "account:owner",
    "a": "account:admin",
    "d": "account:developer",
    "b": "account:billing",
}
OPEN: Final = frozenset({"signing_in_sign_in", "signing_in_accept"})
"""For everybody, without a token."""
BOUNDLESS: Final = frozenset({"signing_in_sign_out", "signing_in_me", "signing_in_change_password"})
"""Roles of accounts are let in although no account is in the path: these are about the caller himself."""
TABLE: Final = {
    "signing_in_sign_out": "OFSV oadb",
    "signing_in_me": "OFSV oadb",
    "signing_in_change_password": "OFSV oadb",
    "operators_create": "O",
    "operators_list_all": "OFSV",
    "operators_show": "OFSV",
    "operators_change": "O",
    "operators_delete": "O",
    "operators_new_link": "O",
    "tokens_create_relay": "O",
    "tokens_list_relay": "O",
    "tokens_delete_relay": "O",
    "tokens_create_account": "O oa",
    "tokens_list_account": "O oa",
    "tokens_delete_account": "O oa",
    "accounts_create": "OS",
    "accounts_list_all": "OFSV",
    "accounts_show": "OFSV oadb",
    "accounts_change": "OFS oa",
    "credits_create": "OF",
    "credits_list_all": "OFSV oab",
    "members_create": "OS oa",
    "members_list_all": "OFSV oadb",
    "members_show": "OFSV oadb",
    "members_change": "OS oa",
    "members_delete": "OS oa",
    "members_new_link": "OS oa",
    "keys_create": "OS oad",
    "keys_list_all": "OFSV oadb",
    "keys_show": "OFSV oadb",
    "keys_change": "OS oad",
    "keys_delete": "OS oad",
    "keys_restore": "OS oad",
    "key_batches_create": "OS oad",
    "key_batches_change": "OS oad",
    "key_batches_rotate": "OS oad",
    "balance_show": "OFSV oab",
    "codes_create": "OF",
    "codes_list_all": "OFSV",
    "codes_revoke": "OF",
    "codes_redeem": "oab",
    "statements_show": "OFSV oab",
    "upstreams_create": "O",
    "upstreams_list_all": "OFSV",
    "upstreams_show": "OFSV",
    "upstreams_change": "O",
    "upstreams_delete": "O",
    "requests_list_page": "OFSV",
    "requests_show": "OFSV",
    "requests_list_of_account": "OFSV oadb",
    "requests_show_of_account": "OFSV oadb",
}
"""Operation id → letters of its roles."""


def roles_of(operation_id: str) -> frozenset[Role]:
    """Who may, according to the table; nobody for an operation it does not know."""
    return frozenset(LETTERS[letter] for letter in TABLE.get(operation_id, "").replace(" ", ""))
