"""How a document is refused."""


class PolicyError(ValueError):
    """A document that is no policy; `problems` lists all that is wrong with it."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
