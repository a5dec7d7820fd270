"""What a worker does for its memory while it runs."""

import asyncio
import contextlib
import sys

import pytest

from limeguard.verifier import memory


async def test_free_memory_is_given_back_again_and_again() -> None:
    calls: list[bool] = []
    task = asyncio.create_task(memory.Memory(lambda: calls.append(True), pause=0.01).run())
    async with asyncio.timeout(5):
        while len(calls) < 3:
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_library_that_cannot_give_back_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    task = asyncio.create_task(memory.Memory(pause=0.01).run())
    await asyncio.sleep(0.1)
    assert not task.done()  # a part of the verifier that ends is a fault of it
    task.cancel()


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is asked")
def test_the_c_library_here_gives_back() -> None:
    trim = memory._malloc_trim()
    if trim is None:
        pytest.skip("this C library has no malloc_trim")
    assert trim() in {0, 1}
