"""Which agent relays its pool's retries, also while the group rebalances."""

import asyncio

from aiokafka import TopicPartition

from fluxpool_worker.agent.retry.relay_duty import RelayDuty

FIRST, OTHER = TopicPartition("tasks", 0), TopicPartition("tasks", 1)


def test_the_owner_of_partition_0_relays_until_it_is_reassigned() -> None:
    duty = RelayDuty()
    assert (duty.is_held, duty.may_work) == (False, False)
    duty.assigned([OTHER])
    assert not duty.is_held
    duty.assigned([FIRST, OTHER])
    assert (duty.is_held, duty.may_work) == (True, True)
    duty.assigned([])
    assert (duty.is_held, duty.may_work) == (False, False)


async def test_nothing_is_relayed_during_a_rebalance() -> None:
    duty = RelayDuty()
    duty.assigned([FIRST])
    term = duty.term
    await duty.revoked()
    assert (duty.is_held, duty.may_work, duty.term) == (True, False, term)
    duty.assigned([FIRST])
    assert duty.may_work
    assert duty.term > term, "others may have relayed in between"


async def test_a_rebalance_waits_for_the_current_round() -> None:
    duty = RelayDuty()
    duty.assigned([FIRST])
    async with duty.round():
        revoking = asyncio.create_task(duty.revoked())
        await asyncio.sleep(0)
        assert not revoking.done()
        assert not duty.may_work
    await revoking


async def test_a_wait_for_the_duty_ends_also_when_it_came_earlier() -> None:
    duty = RelayDuty()
    waiting = asyncio.create_task(duty.wait_held())
    duty.assigned([FIRST])
    await waiting
    await duty.wait_held()
