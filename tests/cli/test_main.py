"""`limeguard verifier --workers N` is `limeguard verifier run --workers N`; help stays help."""

import pytest
from click.testing import CliRunner

from limeguard.cli.main import limeguard


@pytest.mark.parametrize("words", [("verifier", "run", "--workers", "0"), ("verifier", "--workers", "0")])
def test_options_without_a_command_are_those_of_run(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(limeguard, words)
    assert done.exit_code == 2
    assert "--workers: at least one worker" in done.output


@pytest.mark.parametrize("name", ["-h", "--help"])
def test_help_of_a_group_lists_its_commands(name: str) -> None:
    done = CliRunner().invoke(limeguard, ["agent", name])
    assert done.exit_code == 0
    assert "run" in done.output
    assert "push" in done.output
