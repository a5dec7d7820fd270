"""The cleaning of text from outside, before it stands in a line that people and programs read. Pure."""

MAX_LOGGED = 512
"""Characters of one value from outside that a log line shows; the rest is cut."""


def clean(text: object, limit: int = MAX_LOGGED) -> str:
    """Make text from outside safe to stand in one log line: escape what is not printable, bound its length."""
    shown = str(text)[: limit + 1]
    escaped = shown if shown.isprintable() else "".join(map(_escaped, shown))
    return escaped[:limit] + "…" if len(escaped) > limit else escaped


def _escaped(c: str) -> str:
    return c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
