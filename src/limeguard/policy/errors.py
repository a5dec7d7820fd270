"""How a document is refused."""

from typing import Final

MAX_PROBLEMS: Final = 50
"""Problems of one document that are named; nobody reads on."""


class PolicyError(ValueError):
    """A policy that cannot be used. `problems` names what is wrong with it, and how much more there is after many."""

    def __init__(self, *problems: str) -> None:
        more = len(problems) - MAX_PROBLEMS
        shown = (*problems[:MAX_PROBLEMS], f"and {more} more") if more > 0 else problems
        super().__init__("; ".join(shown))
        self.problems: tuple[str, ...] = shown
