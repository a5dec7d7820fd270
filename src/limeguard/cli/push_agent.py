"""The command that runs the push agent in the foreground: options, settings and log, then the agent until a signal."""

import argparse
from collections.abc import Sequence

from limeguard.agent.console import set_up_console
from limeguard.cli.agent import NO_TPM_LIBRARY, usable_settings
from limeguard.settings import Sources
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_push_model_agent")

NO_EFFECT = {
    "registrar_url": "--registrar-url",
    "attestation_interval_seconds": "--attestation-interval-seconds",
    "attestation_index": "--attestation-index",
    "session_index": "--session-index",
    "json_file": "--json-file",
    "message_type": "--message-type",
    "method": "--method",
    "avoid_tpm": "--avoid-tpm",
}
"""Options of the Rust agent that change nothing in its normal operation either: settings decide, or they aid tests."""


def make_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of all options."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Attest this node by itself: call the verifier and give it evidence (push model, API 3.0).",
        epilog="Configured by agent.conf and the environment (KEYLIME_AGENT_*); RUST_LOG sets what is logged, "
        "TCTI which TPM is used.",
    )
    parser.add_argument("-v", "--verifier-url", metavar="URL", help="the verifier, in place of verifier_url")
    parser.add_argument("--agent-identifier", metavar="ID", help="the node's id, in place of uuid")
    parser.add_argument("--api-version", metavar="V", default="v3.0", help="API version of the verifier (v3.0)")
    parser.add_argument("--ca-certificate", metavar="FILE", help="the verifier's CA, in place of verifier_tls_ca_cert")
    parser.add_argument("--insecure", action="store_true", help="accept any certificate of the verifier; unsafe")
    parser.add_argument("--timeout", metavar="MS", type=_milliseconds, default=5.0, help="time for one request (5000)")
    without = parser.add_argument_group("accepted and without effect, as the settings decide")
    for name, option in NO_EFFECT.items():
        spelled = ["-j", option] if name == "json_file" else [option]
        kind = {"action": "store_true"} if name == "avoid_tpm" else {"metavar": "VALUE"}
        without.add_argument(*spelled, dest=name, help=argparse.SUPPRESS, **kind)  # type: ignore[arg-type]
    return parser


def _milliseconds(text: str) -> float:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 3_600_000):
        raise argparse.ArgumentTypeError("write milliseconds, such as 5000")
    return int(text) / 1000


def main(argv: Sequence[str] | None = None, program: str = "keylime_push_model_agent") -> int:
    """Run the agent; return its exit status: 0 after a signal, 1 when it cannot run, 2 for wrong arguments."""
    given, unknown = make_parser(program).parse_known_args(argv)
    sources = Sources.of_process()
    set_up_console(sources.env.get("RUST_LOG"))
    for name, option in NO_EFFECT.items():
        if getattr(given, name):
            log.warning("%s has no effect: agent.conf decides", option)
    if unknown:
        log.warning("Unknown arguments are ignored: %s", clean(" ".join(unknown), 200))
    settings = usable_settings(sources, log)
    if settings is None:
        return 1
    try:
        from limeguard.agent.push_build import PushOptions, run_push_agent  # the TPM library is an optional extra
    except ImportError as problem:
        log.error("%s (%s)", NO_TPM_LIBRARY, problem)  # noqa: TRY400 - a sentence, not a traceback
        return 1
    options = PushOptions(
        verifier_url=given.verifier_url,
        agent_identifier=given.agent_identifier,
        api_version=given.api_version,
        ca_certificate=given.ca_certificate,
        insecure=given.insecure,
        timeout=given.timeout,
    )
    return run_push_agent(settings, options, sources.env)


def limeguard_agent_push(argv: Sequence[str] | None = None) -> int:
    """Run as `limeguard agent push`."""
    return main(argv, "limeguard agent push")
