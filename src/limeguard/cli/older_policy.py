"""`keylime_convert_runtime_policy` and `keylime_sign_runtime_policy`: the tools before `keylime-policy`."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

from limeguard.authoring.policy import signing
from limeguard.authoring.policy.build import with_keys
from limeguard.authoring.policy.collected import SourceError
from limeguard.policy.errors import PolicyError
from limeguard.policy.legacy import convert, exclude_lines, upgrade


def convert_runtime_policy(arguments: Sequence[str]) -> int:
    """Convert a flat or JSON allowlist, or bring a policy to the present version; return the exit status."""
    parser = argparse.ArgumentParser(prog="keylime_convert_runtime_policy")
    option = parser.add_argument
    option("-a", "--allowlist", default="", help="flat or JSON allowlist")
    option("-r", "--runtime_policy", default="", help="policy of an older version")
    option("-e", "--excludelist", default="", help="exclude patterns, one a line; # begins a remark")
    option("-v", "--verification_keys", nargs="+", default=[], help="keys that verify signatures of files")
    option("-o", "--output_file", default="", help="file to write")
    if not arguments:
        parser.print_help()
        return 0
    options = parser.parse_args(arguments)
    return said(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    if bool(options.allowlist) == bool(options.runtime_policy):
        raise SourceError("Name either an allowlist (-a) or a runtime policy (-r)")
    if not options.output_file:
        raise SourceError("Name a file to write (-o)")
    policy: dict[str, Any]
    if options.allowlist:
        policy = convert(_text(options.allowlist), str(datetime.fromtimestamp(time(), UTC).replace(tzinfo=None)))
    else:
        document = json.loads(_text(options.runtime_policy))
        if not isinstance(document, dict):
            raise SourceError(f"{options.runtime_policy} is not a JSON object")
        policy = upgrade(document)
    if options.excludelist:
        policy["excludes"] = [*policy["excludes"], *exclude_lines(_text(options.excludelist))]
    if options.verification_keys:
        policy["verification-keys"] = with_keys(policy["verification-keys"], options.verification_keys)
    Path(options.output_file).write_text(json.dumps(policy), encoding="utf-8", errors="surrogateescape")


def sign_runtime_policy(arguments: Sequence[str]) -> int:
    """Sign the bytes of a file as they are; return the exit status."""
    parser = argparse.ArgumentParser(prog="keylime_sign_runtime_policy")
    option = parser.add_argument
    option("-r", "--runtime_policy", required=True, help="the policy")
    option("-o", "--output_file", required=True, help="file to write")
    option("-k", "--keyfile", default="", help="PEM file of an elliptic curve key")
    option("-p", "--keypath", default="keylime-ecdsa-key", help="where a new key is written")
    option("-b", "--backend", choices=("ecdsa", "x509"), default="ecdsa", help="what names the key")
    option("-c", "--cert_outfile", "--certificate_output_file", default="certificate.crt", help="for x509")
    options = parser.parse_args(arguments)
    return said(lambda: _sign(options))


def _sign(options: argparse.Namespace) -> None:
    payload = Path(options.runtime_policy).read_bytes()
    key = signing.load_key(options.keyfile) if options.keyfile else signing.make_key(options.keypath)
    certificate = options.cert_outfile if options.backend == "x509" else None
    envelope = signing.sign(payload, key, certificate, datetime.fromtimestamp(time(), UTC))
    Path(options.output_file).write_text(envelope, encoding="utf-8")


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def said(work: Callable[[], None]) -> int:
    """Do the work; return the exit status, and say in a sentence why it could not be done."""
    try:
        work()
    except (SourceError, OSError, ValueError) as problem:
        said = "; ".join(problem.problems) if isinstance(problem, PolicyError) else str(problem)
        print(said, file=sys.stderr)
        return 1
    return 0
