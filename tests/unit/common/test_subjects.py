"""Subjects and streams: every subject lands in exactly one stream, and the streams are as RELIABILITY.md wants them."""

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType

from libs.common import events, ids, subjects

_NS = 10**9


def matches(pattern: str, subject: str) -> bool:
    assert pattern.endswith(".>")
    return subject.startswith(pattern[:-1]) and len(subject) >= len(pattern)


@pytest.mark.parametrize(
    ("subject", "stream"),
    [
        *((subjects.usage_subject(number), subjects.STREAM_USAGE) for number in (0, 7, ids.PARTITIONS - 1)),
        (subjects.refused_subject(7), subjects.STREAM_USAGE),
        pytest.param(subjects.control_subject("account", ids.new_account_id()), subjects.STREAM_CONTROL, id="control"),
        (subjects.DLQ_USAGE, subjects.STREAM_DLQ),
        (subjects.DLQ_CONTROL, subjects.STREAM_DLQ),
    ],
)
def test_every_subject_has_one_stream(subject: str, stream: str) -> None:
    found = [
        config.name
        for config in subjects.stream_configs(replicas=1, bytes_max=1)
        if any(matches(pattern, subject) for pattern in config.subjects or [])
    ]
    assert found == [stream]


def test_subject_names() -> None:
    names = [subjects.usage_subject(number) for number in range(ids.PARTITIONS)]
    assert names[0] == "usage.v1.p00" and names[63] == "usage.v1.p63" and len(set(names)) == 64
    assert all(matches(subjects.USAGE_EVENTS, name) and not subjects.is_refused(name) for name in names)
    refused = [subjects.refused_subject(number) for number in range(ids.PARTITIONS)]
    assert refused[7] == "usage.refused.p07" and len(set(refused)) == 64
    assert all(subjects.is_refused(name) and not matches(subjects.USAGE_EVENTS, name) for name in refused)
    assert subjects.control_subject("key", "key_1") == "control.key.key_1"


def test_streams_are_configured_so_that_nothing_acknowledged_is_lost() -> None:
    configs = {config.name: config for config in subjects.stream_configs(replicas=3, bytes_max=12_345)}
    assert set(configs) == {"USAGE", "CONTROL", "DLQ"}
    for config in configs.values():
        assert config.storage is StorageType.FILE
        assert config.retention is RetentionPolicy.LIMITS
        assert config.discard is DiscardPolicy.NEW
        assert config.deny_delete and config.deny_purge
        assert (config.num_replicas, config.max_bytes) == (3, 12_345)
        assert config.as_dict()["duplicate_window"] == 2 * 3600 * _NS
    assert configs["USAGE"].as_dict()["max_age"] == 30 * 24 * 3600 * _NS
    assert not configs["CONTROL"].max_age and not configs["DLQ"].max_age


def test_the_control_kinds_are_subject_tokens() -> None:
    for kind in (events.Account, events.ApiKey, events.Credit):
        tag = str(kind.__struct_config__.tag)
        assert tag.isalpha() and subjects.control_subject(tag, "x").count(".") == 2
