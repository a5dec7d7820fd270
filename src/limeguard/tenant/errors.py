"""What ends a command with a message for the operator instead of a traceback."""


class TenantError(Exception):
    """Something the operator must know and can act on: one ERROR line, exit status 1."""


class ArgumentError(Exception):
    """Options that contradict each other: usage on stderr, exit status 2, nothing has been sent."""
