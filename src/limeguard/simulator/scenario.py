"""What happens to a simulated fleet, and when: a file that people write. Pure.

```yaml
- {at: 30, do: measure, nodes: 100%, files: 20}
- {at: 60, do: unlisted, nodes: 5}
- {at: 90, do: offline, nodes: 10%, seconds: 20}
```
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

ATTACKS: Final = ("unlisted", "forge", "extend", "replay", "rollback")
"""What a verifier has to find; the time until it does is measured."""
CHANGES: Final = ("measure", "reboot", "offline", "latency")
"""What honest machines do."""
_MEMBERS: Final = frozenset({"at", "do", "nodes", "files", "seconds"})


class ScenarioError(ValueError):
    """A scenario that cannot be played; the text names every problem."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happens `at` seconds after the start, to so many nodes, or to a part of all (0 to 1).

    `files` is for measure, `seconds` for offline (how long) and latency (how late each answer is).
    """

    at: float
    do: str
    count: int | None
    part: float
    files: int = 1
    seconds: float = 0.0

    def nodes(self, fleet: int) -> int:
        """Return how many of a fleet are concerned, at least one."""
        wanted = self.count if self.count is not None else round(self.part * fleet)
        return max(1, min(wanted, fleet))


def parse_scenario(document: object) -> tuple[Happening, ...]:
    """Return the happenings in the order of their times. Raises ScenarioError."""
    if not isinstance(document, list):
        raise ScenarioError("a scenario is a list of happenings, each with `at` and `do`")
    problems = [text for number, one in enumerate(document, 1) for text in _problems(one, number)]
    if problems:
        raise ScenarioError("; ".join(problems))
    return tuple(sorted((_happening(one) for one in document), key=lambda one: one.at))


def _problems(one: object, number: int) -> Iterator[str]:
    place = f"happening {number}"
    if not isinstance(one, dict):
        yield f"{place} is not a map"
        return
    yield from (f"{place}: {name!r} is not known" for name in one if name not in _MEMBERS)
    if one.get("do") not in (*ATTACKS, *CHANGES):
        yield f"{place}: do is one of {', '.join((*ATTACKS, *CHANGES))}"
    if "at" not in one:
        yield f"{place}: `at` is missing"
    for name in ("at", "seconds", "files"):
        value = one.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            yield f"{place}: {name} is not a number from 0 on"
        elif name == "files" and value != int(value):
            yield f"{place}: files is a whole number"
    if one.get("do") == "offline" and not one.get("seconds"):
        yield f"{place}: `seconds` says how long it is offline"
    nodes = one.get("nodes", 1)
    if _nodes(nodes) is None:
        yield f"{place}: nodes is a whole number above 0, or a part such as 10%"


def _nodes(value: object) -> tuple[int | None, float] | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, 0.0
    if isinstance(value, str) and value.endswith("%"):
        try:
            part = float(value[:-1]) / 100
        except ValueError:
            return None
        return (None, part) if 0 < part <= 1 else None
    return None


def _happening(one: dict[str, Any]) -> Happening:
    count, part = _nodes(one.get("nodes", 1)) or (1, 0.0)
    return Happening(
        at=float(one["at"]),
        do=one["do"],
        count=count,
        part=part,
        files=int(one.get("files", 1)),
        seconds=float(one.get("seconds", 0.0)),
    )


def histogram_quantile(buckets: Sequence[int], part: float, width: float) -> float:
    """Return the value below which a part of all counts lies, from counts of buckets of equal width."""
    total, seen = sum(buckets), 0
    for number, count in enumerate(buckets):
        seen += count
        if total and seen >= part * total:
            return (number + 1) * width
    return 0.0
