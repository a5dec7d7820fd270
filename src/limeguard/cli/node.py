"""`limeguard node`: questions about one node, under the words that people look for first."""

import argparse
from collections.abc import Sequence


def explain(arguments: Sequence[str]) -> int:
    """Say why a node is in its condition; the verifier is asked as `limeguard tenant -c why` does."""
    from limeguard.cli.tenant import tenant

    parser = argparse.ArgumentParser(prog="limeguard node explain", description="Say why a node is in its condition.")
    parser.add_argument("id", help="id of the node")
    options, more = parser.parse_known_args(arguments)
    return tenant(["-c", "why", "-u", options.id, *more])
