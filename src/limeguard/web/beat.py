"""Calls that may wait a moment, made together: all at the beats of one grid of times.

A process that sleeps pays for every wake-up, on virtual machines more than for the work that it wakes for.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from limeguard.telemetry import get_logger

log = get_logger("keylime.web")

MIN_PERIOD: Final = 0.001
"""Timers of event loops count in milliseconds."""


class Beat:
    """Makes calls at multiples of a period. For one event loop, in which it is made."""

    def __init__(self, period: float) -> None:
        """Beat every `period` seconds while there is something to call."""
        self.period = max(period, MIN_PERIOD)
        self._loop = asyncio.get_running_loop()
        self._wanted: dict[Callable[[], None], int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0
        self._last = 0

    def call_after(self, delay: float, function: Callable[[], None]) -> None:
        """Call `function` once, at the first beat that is `delay` seconds away; of two wishes the earlier counts."""
        wanted = self._wanted.get(function)
        if wanted is not None and wanted <= self._last + 1:
            return  # no beat is earlier than that: what most wishes of a busy moment find
        beat = max(math.ceil((time.monotonic() + delay) / self.period), self._last + 1)
        if wanted is None or beat < wanted:
            self._wanted[function] = beat
            self._arm(beat)

    def cancel(self, function: Callable[[], None]) -> None:
        """Do not call `function` after all."""
        self._wanted.pop(function, None)

    def _arm(self, beat: int) -> None:
        if self._timer is not None:
            if self._next <= beat:
                return
            self._timer.cancel()
        self._next = beat
        self._timer = self._loop.call_later(max(beat * self.period - time.monotonic(), 0.0), self._strike)

    def _strike(self) -> None:
        # The loop's timers may be a millisecond early: the beat that was meant counts, and a later one if it is late.
        self._timer = None
        self._last = max(self._next, math.floor(time.monotonic() / self.period))
        for function in [function for function, beat in self._wanted.items() if beat <= self._last]:
            del self._wanted[function]
            try:
                function()
            except Exception:
                log.exception("Error in a timed call")
        if self._wanted:
            self._arm(min(self._wanted.values()))
