"""What the data of an event says, in the shape that reference states are written for.

Decoding believes nothing: what of it a digest covers is decided by `limeguard.evidence.bootlog.replay`.
"""

from typing import Any

from limeguard.evidence.bootlog.log import BootEvent

Decoded = dict[str, Any] | list[Any] | str | None


def decode(event: BootEvent) -> Decoded:
    """Return the `Event` member of the enriched form: an object, a list, text, or None where there is no data."""
    raise NotImplementedError
