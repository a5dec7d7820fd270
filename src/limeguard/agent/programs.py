"""Ending a program that the agent runs, with everything that it started."""

import os
import signal
from asyncio.subprocess import Process
from contextlib import suppress


async def end_program(process: Process) -> None:
    """Kill the program's whole session and wait until it is gone; it must have been started in a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.communicate()
