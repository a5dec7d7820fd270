"""`limeguard`: one command with a group for each program and tool.

Decides the names of the groups and nothing else. What a group needs is imported when it is used, so that help is quick
and a machine without the TPM library can do everything but run an agent.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from limeguard import __version__

PASS_ON: Mapping[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""The program behind the command reads the arguments itself, `--help` included."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command is defined (`module:name`), and the line that help shows for it."""

    target: str
    summary: str

    def load(self) -> Any:
        """Import what the target names."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


def _program(name: str, lazy: Lazy) -> click.Command:
    """Return a command that hands its arguments to a function which returns an exit status."""

    @click.command(name, context_settings={**PASS_ON}, add_help_option=False, help=lazy.summary)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: tuple[str, ...]) -> None:
        main: Callable[[list[str]], int] = lazy.load()
        sys.exit(main(list(arguments)))

    return run


class LazyGroup(click.Group):
    """A group whose click commands are imported only when they are invoked, not when they are listed."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted([*super().list_commands(ctx), *self._lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, importing it."""
        if cmd_name in self._lazy:
            command: click.Command = self._lazy[cmd_name].load()
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.commands.get(name)
            rows.append((name, command.get_short_help_str(100) if command else self._lazy[name].summary))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    "limeguard",
    cls=LazyGroup,
    lazy={
        "boot": Lazy("limeguard.cli.boot:boot", "Show boot logs, make and try policies for them."),
        "ca": Lazy("limeguard.cli.ca:ca", "Make and manage a certificate authority."),
        "config": Lazy("limeguard.cli.config:config", "Show, check and explain the settings."),
        "demo": Lazy("limeguard.cli.demo:demo", "Attest a software TPM, change it, see it distrusted."),
        "explain": Lazy("limeguard.cli.explain:explain", "Explain a finding: what it means and what to do."),
        "simulate": Lazy("limeguard.cli.simulate:simulate", "Simulate a fleet and see what the servers do with it."),
        "reference": Lazy("limeguard.cli.reference:reference", "Print a page of the reference, or OpenAPI."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="limeguard")
def limeguard() -> None:
    """Remote attestation for fleets, compatible with the Keylime protocol."""


class Service(click.Group):
    """A program and what belongs to it: options without a command are those of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before options, but not before a question for help."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _add_service(name: str, what: str) -> click.Group:
    group = Service(name, help=f"{what}.")
    group.add_command(_program("run", Lazy(f"limeguard.cli.{name}:main", f"Run the {name} in the foreground.")))
    limeguard.add_command(group)
    return group


_add_service("registrar", "Where agents register their TPM's keys")
_add_service("verifier", "What challenges nodes and judges their answers")
_agent = _add_service("agent", "What answers for a node, beside its TPM")
_agent.add_command(
    _program("push", Lazy("limeguard.cli.push_agent:limeguard_agent_push", "Attest by itself (push model)."))
)
limeguard.add_command(_program("tenant", Lazy("limeguard.cli.tenant:tenant", "Enrol and manage nodes.")))
limeguard.add_command(
    _program("userdata-encrypt", Lazy("limeguard.cli.userdata:main", "Encrypt a payload and split its key."))
)

limeguard.add_command(_program("policy", Lazy("limeguard.cli.policy:policy", "Make, sign, compare and try policies.")))
_node = click.Group("node", help="Questions about one node.")
_node.add_command(_program("explain", Lazy("limeguard.cli.node:explain", "Say why a node is in its condition.")))
limeguard.add_command(_node)


def main() -> NoReturn:
    """Run the command and exit with its status."""
    limeguard.main(prog_name="limeguard")
    raise AssertionError("click exits")
