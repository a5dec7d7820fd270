"""Digests on their way into a policy: paths in the order of first sight, each with its digests."""

from collections.abc import Iterable, Mapping

Digests = dict[str, list[str]]


class SourceError(Exception):
    """A source of digests that cannot be used; the text is one sentence for the operator."""


def logged(path: str) -> str:
    """Return a path as the kernel logs it: it writes a blank as an underscore."""
    return path.replace(" ", "_")


def add(into: Digests, path: str, digest: str) -> None:
    """Add one digest."""
    known = into.setdefault(path, [])
    if digest not in known:
        known.append(digest)


def merge(sources: Iterable[Mapping[str, Iterable[str]]]) -> Digests:
    """Return the union over all sources."""
    merged: Digests = {}
    for source in sources:
        for path, digests in source.items():
            for digest in digests:
                add(merged, path, digest)
    return merged
