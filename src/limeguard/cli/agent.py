"""The command that runs the pull agent in the foreground: settings and log first, then the agent until a signal."""

import argparse
import logging
import sys
from collections.abc import Sequence

from limeguard.agent.console import set_up_console
from limeguard.agent.settings import AgentSettings, load_agent_settings
from limeguard.settings import SettingsError, Sources
from limeguard.telemetry import get_logger

log = get_logger("keylime_agent")

NO_TPM_LIBRARY = (
    "The agent needs the TPM library tpm2-pytss, which is not installed or does not fit this system's libtss2: "
    "pip install 'limeguard[agent]'"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent; return its exit status: 0 after a signal, 1 when it cannot run, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="keylime_agent",
        description="Attest this node: answer a verifier's quote requests (pull model).",
        epilog="Configured by agent.conf and the environment (KEYLIME_AGENT_*); RUST_LOG sets what is logged, "
        "TCTI which TPM is used.",
    )
    parser.parse_args(argv)
    sources = Sources.of_process()
    set_up_console(sources.env.get("RUST_LOG"))
    settings = usable_settings(sources, log)
    if settings is None:
        return 1
    try:
        from limeguard.agent.build import run_agent  # the TPM library is an optional extra
    except ImportError as problem:
        log.error("%s (%s)", NO_TPM_LIBRARY, problem)  # noqa: TRY400 - a sentence, not a traceback
        return 1
    return run_agent(settings, sources.env)


def usable_settings(sources: Sources, log: logging.Logger) -> AgentSettings | None:
    """Return an agent's settings, announced in its log; None when they cannot be used, which a sentence has said."""
    try:
        loaded = load_agent_settings(sources)
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        return None
    loaded.announce(log)
    settings: AgentSettings = loaded.settings
    return settings
