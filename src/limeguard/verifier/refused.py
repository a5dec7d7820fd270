"""What the services answer when a request cannot be served."""


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The request cannot be served; `status` and `text` are the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
