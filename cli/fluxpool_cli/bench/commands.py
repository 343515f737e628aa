"""`fluxpool bench`: offers real tasks to a gateway at a constant rate, says how it answered, and cancels them.

Owns the command, what it promises about the tasks, and its result; `open_loop` sends.
"""

import asyncio
import math
import uuid
from collections import Counter
from typing import Annotated, Final

import typer

from fluxpool_cli.bench.open_loop import MAX_OPEN, Load, Tally, offer, percentile
from fluxpool_cli.confirming import YesOption, confirm
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.gateway import ATTEMPTS, GatewayAddress, GatewayOptions
from fluxpool_cli.options import finite, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.progress_bar import Bar, counting_bar
from fluxpool_cli.submit.commands import parse_size
from fluxpool_client import AsyncClient, OptionalFields

MAX_REQUESTS: Final = 100_000
"""Their cancelation is one command of Kafka for each."""
ANSWER_SECONDS: Final = 30.0
CANCEL_SECONDS: Final = 60.0
"""Of one request that cancels: it waits until the store knows all that was accepted."""
_REASON: Final = "the end of fluxpool bench"
_GRACE_SECONDS: Final = 60
"""After the end: until then all are canceled, or expire."""
_LATE_SECONDS: Final = 0.01
"""More than an idle machine is late by."""


@with_option_groups
def bench(
    *,
    rps: Annotated[
        float, typer.Option("--rps", min=0.1, max=2000, help="Tasks a second to offer.", callback=finite)
    ] = 10.0,
    duration: Annotated[
        float, typer.Option(min=0.1, max=300, help="Seconds to offer them for.", callback=finite)
    ] = 10.0,
    size: Annotated[str, typer.Option(help="Width x height of the tasks in pixels.")] = "256x256",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the tasks.")] = 1,
    yes: YesOption = False,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Measure how fast a gateway accepts tasks.

    How many, how fast, and what it refuses.

    It submits real tasks with your key, after a question: they count for the limits and the usage of the tenant, stand
    in its lists, and workers begin them. They are small, of priority standard (there is no lower one), and one group;
    all are canceled at the end, also after Ctrl-C, and each has a deadline a minute after the run, so that they end
    even when this program is killed. A pool that scales with its lag starts workers for them.

    An open loop: each request has its time, and its latency counts from then on, however the ones before are answered.
    Where this machine cannot keep up the result says so.

    Exits 0 when every request was sent and answered, 1 when one was not, 3 when no gateway serves, 4 without
    permission.
    """
    width, height = parse_size(size)
    group = f"bench-{uuid.uuid4().hex[:12]}"
    fields: OptionalFields = {
        "width": width,
        "height": height,
        "steps": steps,
        "group_id": group,
        "priority": "standard",
        "deadline_s": math.ceil(duration) + _GRACE_SECONDS,
        "metadata": {"source": "fluxpool bench"},
    }
    load = Load(rate_per_second=rps, duration_seconds=duration, prompt="fluxpool bench", fields=fields)
    if load.requests > MAX_REQUESTS:
        raise typer.BadParameter(
            f"{rps:g} a second for {duration:g} s are {load.requests} tasks, more than {MAX_REQUESTS}",
            param_hint="--rps",
        )
    place = gateway.place()
    confirm(f"submit {load.requests + 1} real tasks to {place.url}, and cancel them at the end", yes=yes)
    tally = Tally()
    # One that counts for nothing: it opens what a gateway opens at its first task, and a gateway or a key that takes or
    # cancels none ends the run here.
    with gateway.client(timeout_seconds=ANSWER_SECONDS) as client:
        client.cancel(client.submit(load.prompt, **fields).request_id, reason=_REASON)
    remedy = f"fluxpool cancel --group {group} --yes"
    interrupted = False
    with counting_bar("sent", total=load.requests) as bar:
        try:
            asyncio.run(_offer(place, load, tally, bar))
        except KeyboardInterrupt:
            interrupted = True
    bar.note(f"canceling {tally.accepted + 1} tasks of {group}")
    with interruptible(f"tasks of {group} go on until their deadline; cancel them with `{remedy}`"):
        canceled = _cancel(gateway, group, remedy)
    write_result(_result(load, tally, group=group, canceled=canceled), output)
    if interrupted:
        raise CommandError(ExitCode.INTERRUPTED, f"interrupted; the tasks of {group} are canceled")
    lost = tally.unsent + tally.unanswered.total()
    if lost:
        raise CommandError(ExitCode.FAILED, f"{lost} of {load.requests} requests were not sent or not answered")


async def _offer(place: GatewayAddress, load: Load, tally: Tally, bar: Bar) -> None:
    client = AsyncClient(place.url, api_key=place.api_key, timeout_seconds=ANSWER_SECONDS, max_attempts=1)
    async with client:
        await offer(client, load, tally, on_sent=lambda: bar.advance(1))


def _cancel(gateway: GatewayOptions, group: str, remedy: str) -> int:
    """Cancel all tasks of the group that have not ended; returns how many had not."""
    try:
        with gateway.client(timeout_seconds=CANCEL_SECONDS, max_attempts=ATTEMPTS) as client:
            canceled = client.cancel_many(group_id=group, reason=_REASON)
    except CommandError as error:
        raise CommandError(error.code, f"{error}\nthe tasks are not canceled: `{remedy}` does it") from None
    return sum(task.outcome == "requested" for task in canceled)


def _result(load: Load, tally: Tally, *, group: str, canceled: int) -> Result:
    seconds = tally.accepted_seconds
    latency = {f"p{percent}": percentile(seconds, percent) for percent in (50, 90, 99)} | {
        "max": percentile(seconds, 100)
    }
    late = percentile(tally.late_seconds, 99) or 0.0
    per_second = tally.accepted / tally.elapsed_seconds if tally.elapsed_seconds else 0.0
    document = {
        "group": group,
        "offered_per_second": load.rate_per_second,
        "requests": load.requests,
        "sent": tally.sent,
        "unsent": tally.unsent,
        "accepted": tally.accepted,
        "accepted_per_second": round(per_second, 2),
        "refused": dict(tally.refused),
        "unanswered": dict(tally.unanswered),
        "elapsed_seconds": round(tally.elapsed_seconds, 3),
        "latency_ms": {name: _milliseconds(value) for name, value in latency.items()},
        "sender_late_p99_ms": _milliseconds(late),
        "canceled": canceled,
    }
    rows = [
        ("offered", f"{load.requests} at {load.rate_per_second:g} a second"),
        ("accepted", f"{tally.accepted} ({per_second:.1f} a second)"),
        ("refused", _counts(tally.refused)),
        ("no answer", _counts(tally.unanswered)),
        *([("not sent", str(tally.unsent))] if tally.unsent else []),
        *((name, "-" if value is None else f"{value * 1000:.1f} ms") for name, value in latency.items()),
        ("canceled", f"{canceled} of group {group}"),
    ]
    notes = []
    if late > _LATE_SECONDS:
        notes.append(
            f"this machine sent 1% of the requests more than {late * 1000:.0f} ms late, which counts as latency: offer "
            "fewer, or use a faster or idle machine"
        )
    if tally.unsent:
        notes.append(f"{tally.unsent} were not sent: {MAX_OPEN} were under way, without an answer")
    return Result(document=document, parts=[Table(("", ""), rows)], names=[group], notes=notes)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _counts(counts: Counter[str]) -> str:
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return found or "0"
