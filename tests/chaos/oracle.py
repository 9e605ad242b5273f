"""The judge: when all is healed and quiet, ledger, balances and the simulator's invoice must be one story, to the nano-dollar."""

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any, Final

from libs.common import redisclient, rediskeys, streams, subjects
from services.gateway.peek import peek
from tests.chaos.load import Load
from tests.chaos.stack import GATEWAYS, Stack
from tests.e2e.plans import Plan
from tests.e2e.relay import Gateway
from tests.invoice_fold import cost_nanos

QUIET_S: Final = 90.0
Row = dict[str, Any]


def judge(stack: Stack, load: Load) -> tuple[list[str], str]:
    """(what is wrong, figures). Nothing may be disturbed any more, and the load has stopped."""
    problems = _wait_quiet(stack, load)
    invoice: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in stack.relay.invoice():
        invoice[entry["sim_id"]].append(entry)
    outcomes: Counter[str] = Counter()
    for number, account in enumerate(load.accounts):
        plans = {len(plan.body): plan for plan in load.plans if plan.account == number and plan.number in load.told}
        seen: set[int] = set()
        for row in stack.relay.all_rows(account.id):
            outcomes[f"{row['outcome']}/{row['version']}"] += 1
            plan = plans.get(row["bytes_in"])
            if plan is None or row["bytes_in"] in seen:
                problems.append(f"{row['request_id']}: a row of no request, or a second one ({row['bytes_in']} bytes)")
                continue
            seen.add(row["bytes_in"])
            found = wrong_with(plan, row, invoice[plan.sim_id], account.multiplier_ppm)
            told = load.told[plan.number]
            if told.whole and told.status == 200 and row["version"] == 1:  # it stood in a spool long before it ended
                found = found or "answered in full, and its usage was lost"
            problems += [f"{row['request_id']} {plan.scenario or 'text'}: {found}"] if found else []
        for length, plan in plans.items():
            if length not in seen and (invoice[plan.sim_id] or load.told[plan.number].status == 200):
                problems.append(f"{plan.sim_id} ({plan.scenario or 'text'}): no row")
    figures = " ".join(f"{name}={count}" for name, count in sorted(outcomes.items()))
    return problems, f"{sum(outcomes.values())} rows ({figures}), answers {dict(sorted(load.statuses().items()))}"


def wrong_with(plan: Plan, row: Row, entries: list[dict[str, Any]], multiplier_ppm: int) -> str:
    """What is wrong with a row, `` if nothing is."""
    usage, outcome = row["usage"], row["outcome"]
    if outcome == "free":
        return "" if (row["total_nanos"], usage, row["lines"]) == (0, {}, []) else "free, and costs something"
    by_id = {entry["upstream_request_id"]: entry for entry in entries}
    entry = by_id.get(row["upstream_request_id"])
    declined = entry["declined_models"] if entry else []
    cost = cost_nanos(
        usage,
        model_asked=plan.model,
        model_answered=row["model_answered"],
        cache_ttl_1h=plan.ttl_1h,
        multiplier_ppm=multiplier_ppm,
        declined_models=declined,
    )
    if row["total_nanos"] != cost:
        return f"costs {row['total_nanos']}, by the fold {cost}"
    estimate = peek(plan.body).input_estimated_tokens
    match outcome:
        case "measured":
            # who cancels may have had the final usage already when he hung up, a moment before the very end
            final = (entry or {}).get("usage_last_sent" if plan.leave else "usage_final")
            return "" if usage == final else f"measured at {usage}, by the invoice {entry}"
        case "partial" if row["version"] == 2:
            told = [one["usage_start"] for one in entries]
            return "" if usage in told else f"recovered at {usage}, message_start told {told}"
        case "partial":
            # what was sent may have been lost on a way that was broken: the last that was seen is what counts
            seen = (entry["usage_start"], entry["usage_last_sent"]) if entry else ()
            return "" if usage in seen else f"partial at {usage}, by the invoice {entry}"
        case "expired":
            return "" if usage == {"input_tokens": estimate} else f"expired at {usage}, estimated {estimate}"
        case "estimated":
            start = (entry or {}).get("usage_start")
            fits = usage["input_tokens"] == estimate or (start and usage["input_tokens"] == start["input_tokens"])
            return "" if fits else f"estimated at {usage}"
    return f"an outcome nobody knows: {outcome}"


def _wait_quiet(stack: Stack, load: Load) -> list[str]:
    """Until nothing is under way any more and the sums agree; what stays wrong."""
    deadline, problems = time.monotonic() + QUIET_S, ["never looked"]
    while problems and time.monotonic() < deadline:
        time.sleep(0.5)
        problems = [f"{name} is not at rest: {busy}" for name in GATEWAYS if (busy := _busy(stack, name))]
        problems += asyncio.run(_unsettled(stack, [account.id for account in load.accounts]))
        problems = problems or _sums(stack, load)
    return problems


def _busy(stack: Stack, name: str) -> dict[str, int]:
    gateway = Gateway(stack.services[name])
    gauges = ("relay_requests_in_flight", "relay_drains_in_progress", "relay_events_unpublished", "relay_leases_open")
    try:
        return {gauge: value for gauge in gauges if (value := gateway.gauge(gauge))}
    except OSError as error:
        return {str(error): 1}


async def _unsettled(stack: Stack, accounts: list[str]) -> list[str]:
    problems = []
    broker = await streams.connect(stack.direct["RELAY_NATS_URL"], name="oracle")
    redis = redisclient.connect(stack.direct["RELAY_REDIS_URL"], try_seconds=redisclient.TRY_S_UNHURRIED)
    try:
        for stream in (subjects.STREAM_USAGE, subjects.STREAM_CONTROL):
            info = await broker.jetstream().consumer_info(stream, subjects.CONSUMER_ACCOUNTING)
            if info.num_pending or info.num_ack_pending:
                problems.append(f"{stream}: {info.num_pending} pending, {info.num_ack_pending} in hand")
        parked = (await broker.jetstream().stream_info(subjects.STREAM_DLQ)).state.messages
        problems += [f"{parked} parked events"] if parked else []
        for account_id in accounts:
            leases = await redis.hvals(rediskeys.leases(account_id))
            held = await redis.hget(rediskeys.account(account_id), "held")
            left = sum(text[:2] in (b"o ", b"f ") for text in leases)
            problems += [f"{account_id}: {left} leases, {held!r} held"] if left or int(held or 0) else []
    except Exception as error:  # noqa: BLE001 - a store that is still on its way up
        problems.append(f"a store does not answer: {type(error).__name__}: {error}")
    finally:
        await streams.close(broker)
        await redis.aclose()
    return problems


def _sums(stack: Stack, load: Load) -> list[str]:
    problems = []
    for account in load.accounts:
        total = sum(row["total_nanos"] for row in stack.relay.all_rows(account.id))
        spent = stack.relay.spent_nanos(account.id)
        if total != spent:
            problems.append(f"{account.id}: the ledger adds up to {total}, the balance has lost {spent}")
    return problems
