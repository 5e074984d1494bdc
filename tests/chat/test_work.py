"""A request's answers while they are made."""

import asyncio

import pytest

from finelab.chat.engine import Answer, Engine, Piece
from finelab.chat.metrics import Metrics
from finelab.chat.responses import Choice
from finelab.chat.sampling import Sampling
from finelab.chat.work import Work
from tests import tiny


@pytest.mark.parametrize("turns", range(6))
def test_a_client_that_goes_while_a_piece_comes_ends_its_work(turns):
    """asyncio.wait_for of Python 3.11 gives the piece and forgets the cancellation: the work never ended."""
    engine = Engine(tiny.base_model(), tiny.tokenizer())
    choice = Choice(Answer("base", [1], Sampling(), max_tokens=9))

    async def read(work):
        async for _ in work.pieces():
            pass

    async def go_while_a_piece_comes():
        reading = asyncio.create_task(read(Work(engine, Metrics(engine), [choice], {})))
        await asyncio.sleep(0)
        choice.answer.emit(Piece("a"))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        done, _ = await asyncio.wait([reading], timeout=5)
        return done == {reading} and reading.cancelled()

    assert asyncio.run(go_while_a_piece_comes())
