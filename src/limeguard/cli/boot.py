"""`limeguard boot`: boot logs and the policies that judge them. Gathers the subcommands and nothing else."""

from limeguard.cli.main import Lazy, LazyGroup

boot = LazyGroup(
    "boot",
    lazy={
        "check": Lazy("limeguard.cli.boot_check:check", "Judge a boot log by a policy, as the verifier would."),
        "diff": Lazy("limeguard.cli.boot_diff:diff", "Say in words what changed between two boot logs or policies."),
        "learn": Lazy("limeguard.cli.boot_learn:learn_command", "Make a policy from the boot logs of machines."),
        "show": Lazy("limeguard.cli.boot_show:show", "Show what a boot log says and what its digests cover."),
    },
    help="Boot logs (UEFI event logs) and the policies that judge them.",
)
