"""CPU of a whole verifier per attestation, with simulated machines beside it, and Keylime's in the same run.

Both verifiers are processes of their own and attest the same simulated fleet over TLS, one after the other: 200
machines every 2 seconds, without IMA and with an IMA log and a large runtime policy. What is measured is the CPU of the
verifier's processes as the kernel counts it. Keylime's part needs its environment (`./dev peer` makes it).

    ./dev bench fleet
    ./dev run python bench/fleet.py --nodes 1000 --seconds 60 --no-peer
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

import uvloop  # noqa: E402 - beside the path above

from limeguard.cli.sandbox import Sandbox, ini_text  # noqa: E402 - beside the path above
from limeguard.cli.simulate import meter_of  # noqa: E402
from limeguard.cli.softtpm import Program, free_ports, wait_for_port  # noqa: E402
from limeguard.simulator.identity import make_identity  # noqa: E402
from limeguard.simulator.operator import Site  # noqa: E402
from limeguard.simulator.report import Report  # noqa: E402
from limeguard.simulator.run import Plan, Simulation  # noqa: E402
from limeguard.web.tls import client_context, server_context  # noqa: E402

PEER = ROOT / ".venv-keylime"
DEFAULTS = (
    "server_key client_key server_cert client_cert trusted_client_ca trusted_server_ca uuid",
    (
        "server_key_password client_key_password cert_subject_alternative_names durable_attestation_import"
        " persistent_store_url transparency_log_url time_stamp_authority_url time_stamp_authority_certs_path"
        " persistent_store_encoding"
    ),
)
VERIFIER = {
    **dict.fromkeys(DEFAULTS[0].split(), "default"),
    **dict.fromkeys(DEFAULTS[1].split(), ""),
    "version": "2.6",
    "ip": "127.0.0.1",
    "registrar_ip": "127.0.0.1",
    "registrar_port": "8891",
    "enable_agent_mtls": "True",
    "tls_dir": "generate",
    "authorization_provider": "simple",
    "database_url": "sqlite",
    "database_pool_sz_ovfl": "5,10",
    "auto_migrate_db": "True",
    "num_workers": "0",
    "max_workers": "16",
    "exponential_backoff": "True",
    "retry_interval": "2",
    "max_retries": "5",
    "max_upload_size": "104857600",
    "request_timeout": "60.0",
    "measured_boot_policy_name": "accept-all",
    "measured_boot_imports": "[]",
    "measured_boot_evaluate": "once",
    "severity_labels": '["info", "notice", "warning", "error", "critical", "alert", "emergency"]',
    "severity_policy": '[{"event_id": ".*", "severity_label": "emergency"}]',
    "ignore_tomtou_errors": "False",
    "persistent_store_format": "json",
    "transparency_log_sign_algo": "sha256",
    "signed_attributes": "",
    "require_allow_list_signatures": "False",
    "mode": "pull",
    "shutdown_drain_timeout": "10",
}
"""What Keylime's own file says, where the program does not start without it."""
CA = {
    "password": "default",
    "cert_country": "US",
    "cert_ca_name": "bench",
    "cert_state": "NA",
    "cert_locality": "NA",
    "cert_organization": "bench",
    "cert_org_unit": "1",
    "cert_ca_lifetime": "3650",
    "cert_lifetime": "365",
    "cert_bits": "2048",
    "cert_crl_dist": "http://localhost:38080/crl",
}
LOGGING = {
    "loggers": {"keys": "root,keylime"},
    "handlers": {"keys": "out"},
    "formatters": {"keys": "line"},
    "formatter_line": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"},
    "logger_root": {"level": "INFO", "handlers": "out"},
    "handler_out": {"class": "StreamHandler", "level": "INFO", "formatter": "line", "args": "(sys.stdout,)"},
    "logger_keylime": {"level": "INFO", "qualname": "keylime", "handlers": ""},
}


@dataclass(frozen=True)
class Running:
    """A verifier: its process, its port, the folder of its CA."""

    pid: int
    port: int
    authority: Path


@contextmanager
def ours(plan: Plan, workers: int) -> Iterator[Running]:
    """Run limeguard's verifier; 0 workers are as many as it starts by itself."""
    with Sandbox(verifier={"quote_interval": str(plan.interval)}) as sandbox:
        sandbox.start_verifier(*(["--workers", str(workers)] if workers else []))
        pid = sandbox.verifier.pid if sandbox.verifier is not None else 0
        yield Running(pid, sandbox.ports["verifier"], sandbox.authority)


@contextmanager
def keylimes(plan: Plan) -> Iterator[Running]:
    """Run Keylime's verifier with the settings that it ships, but for addresses, interval and notices."""
    with tempfile.TemporaryDirectory(prefix="limeguard-") as name:
        folder = Path(name)
        (port,) = free_ports(1)
        changed = {"port": str(port), "quote_interval": str(plan.interval)}
        sections = {"verifier": {**VERIFIER, **changed}, "revocations": {"enabled_revocation_notifications": "[]"}}
        parts = {"verifier": sections, "ca": {"ca": CA}}
        environment = {**os.environ, "KEYLIME_DIR": name, "KEYLIME_TEST": "on"}
        for part, content in {**parts, "logging": LOGGING}.items():
            path = folder / f"{part}.conf"
            path.write_text("".join(ini_text(section, options) for section, options in content.items()))
            environment[f"KEYLIME_{part.upper()}_CONFIG"] = str(path)
        program = Program("keylime_verifier", [str(PEER / "bin" / "keylime_verifier")], environment, folder)
        program.start()
        try:
            wait_for_port(port, program)
            yield Running(program.pid, port, folder / "cv_ca")
        finally:
            program.kill()


def measured(plan: Plan, running: Running) -> Report:
    """Let the fleet be attested, and return what was seen."""
    with tempfile.TemporaryDirectory(prefix="limeguard-") as name:
        ca = running.authority / "cacert.crt"
        certificate, key = make_identity(Path(name), time.time())
        agents = server_context(certificate, key, "", (ca,), require_client=True)
        client = running.authority / "client-cert.crt", running.authority / "client-private.pem"
        operator = client_context(*client, os.environ.get("BENCH_KEY_PASSWORD", ""), [ca], system_store=False)
        site = Site(f"https://127.0.0.1:{running.port}", operator)

        async def run() -> Report:
            return await Simulation(plan, site, meter_of(running.pid)).run(agents, certificate.read_text())

        return uvloop.run(run())


def row(name: str, report: Report, base: float | None) -> float:
    """Print one line; return milliseconds of CPU a round."""
    cost = 1000 * report.verifier_cpu / max(report.rounds, 1)
    ratio = f"{cost / base:7.1f}" if base else "   1.0"
    late = report.lateness.get("p99", 0.0)
    shown = f"{report.rounds_per_second:7.0f}/s   p99 {1000 * late:6.0f} ms   {report.verifier_bytes >> 20:5d} MiB"
    own = 1000 * report.simulator_cpu / max(report.rounds, 1)
    print(f"  {name:12s} {cost:8.3f} ms {ratio:>8s}   {shown}   (simulator {own:.3f} ms)")
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--digests", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=0, help="processes of limeguard; 0: as installed")
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    peer = PEER.exists() and not options.no_peer
    if not peer:
        print("  (without Keylime: ./dev peer makes its environment)")
    for title, files, digests in (("without IMA", 0, 0), (f"{options.digests:,} digests", 300, options.digests)):
        plan = Plan(
            nodes=options.nodes,
            seconds=options.seconds,
            interval=options.interval,
            warm_up=3 * options.interval,
            files=files,
            digests=digests,
        )
        print(f"{options.nodes} machines every {options.interval:g} s, {title}: CPU of the verifier a round")
        with ours(plan, options.workers) as running:
            base = row("limeguard", measured(plan, running), None)
        if peer:
            with keylimes(plan) as running:
                row("Keylime", measured(plan, running), base)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
    print(json.dumps({"python": sys.version.split()[0], "cpus": os.cpu_count()}))
