"""`limeguard boot`: boot logs and the policies that judge them. Gathers the subcommands and nothing else."""

from limeguard.cli.main import Lazy, LazyGroup

boot = LazyGroup(
    "boot",
    lazy={
        "show": Lazy("limeguard.cli.boot_show:show", "Show what a boot log says and what its digests cover."),
    },
    help="Boot logs (UEFI event logs) and the policies that judge them.",
)
