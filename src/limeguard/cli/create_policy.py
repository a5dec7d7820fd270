"""`keylime_create_policy` and `create_runtime_policy.sh`: what made policies before `keylime-policy`.

Both keep their options and their way of choosing sources; the work is done by the same code as `keylime-policy`.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any, Final

from limeguard.authoring.policy import build, rpm, rpm_remote
from limeguard.authoring.policy.collected import Digests, SourceError
from limeguard.authoring.policy.fetching import WORKERS
from limeguard.authoring.policy.texts import flat_allowlist, measurement_list, read_text
from limeguard.cli.older_policy import said
from limeguard.cli.policy import log_to_stderr

SUMS: Final = {"sha1sum": "sha1", "sha256sum": "sha256", "sha512sum": "sha512"}
NONE: Final = "none"


def create_policy(arguments: Sequence[str]) -> int:
    """Run `keylime_create_policy`; return the exit status."""
    parser = argparse.ArgumentParser(prog="keylime_create_policy", description="Make a runtime policy (deprecated).")
    option = parser.add_argument
    option("-B", "--base-policy", default="", help="policy to merge into")
    option("-k", "--keyrings", action="store_true", help="take keys on keyrings from the measurement list")
    option("-b", "--ima-buf", action="store_true", help="take other buffers from the measurement list")
    option("-a", "--allowlist", default="", help="flat allowlist")
    option("-m", "--ima-measurement-list", default=build.KERNEL_LIST, help="ASCII measurement list")
    option("-i", "--ignored-keyrings", action="append", default=[], help="keyring whose keys are passed over")
    option("-o", "--output", default="", help="file to write, standard output if there is none")
    option("--no-hashes", action="store_true", help="take no digests from the measurement list")
    option("-A", "--add-ima-signature-verification-key", action="append", default=[], metavar="IMA_SIGNATURE_KEYS")
    option("-e", "--exclude", default="", help="exclude patterns, one a line")
    option("-l", "--local-repo", default="", help="directory of an RPM repository")
    option("-r", "--remote-repo", default="", help="address of an RPM repository")
    options = parser.parse_args(arguments)
    log_to_stderr()
    return said(lambda: _create(options))


def _create(options: argparse.Namespace) -> None:
    wants_list = options.keyrings or options.ima_buf or not options.no_hashes
    digests = _one_source(options)
    request = build.Request(
        base_policy=options.base_policy,
        excludelist=options.exclude,
        measurements=options.ima_measurement_list if wants_list else build.NO_LIST,
        keyrings=options.keyrings,
        buffers=options.ima_buf,
        ignored_keyrings=options.ignored_keyrings,
        verification_keys=options.add_ima_signature_verification_key,
        digests=digests,
    )
    text = json.dumps(build.build(request, datetime.fromtimestamp(time(), UTC)))
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8", errors="surrogateescape")
    else:
        print(text)


def _one_source(options: argparse.Namespace) -> Digests:
    """Return the digests of the first source that is named: a list, a folder, a server, what the kernel measured."""
    if options.allowlist:
        return flat_allowlist(read_text(options.allowlist))
    if options.local_repo:
        return rpm.local_repository(options.local_repo)
    if options.remote_repo:
        return asyncio.run(rpm_remote.remote_repository(options.remote_repo, WORKERS))
    if options.no_hashes or options.ima_measurement_list == build.NO_LIST:
        return {}
    return measurement_list(read_text(options.ima_measurement_list)).digests


def create_runtime_policy(arguments: Sequence[str]) -> int:
    """Run `create_runtime_policy.sh`; return the exit status."""
    parser = argparse.ArgumentParser(prog="create_runtime_policy.sh", description="Make a policy of this machine.")
    option = parser.add_argument
    option("-o", "--output_file", required=True, help="file to write")
    option("-a", "--algo", choices=tuple(SUMS), default="sha1sum", help="program whose digests are wanted")
    option("-x", "--ramdisk-location", default="/boot/", help=f"folder of initrds, {NONE} for no initrd")
    option(
        "-y", "--boot_aggregate-location", default=build.KERNEL_LIST, help=f"measurement list, {NONE} for no aggregate"
    )
    option("-z", "--rootfs-location", default="/", help=f"root of the file system, {NONE} for none")
    option("-e", "--exclude_list", default="", help="exclude patterns, one a line")
    option("-s", "--skip-path", default="", help="directories below the root to leave out, separated by commas")
    options = parser.parse_args(arguments)
    log_to_stderr()
    return said(lambda: _create_here(options))


def _create_here(options: argparse.Namespace) -> None:
    algorithm = SUMS[options.algo]
    digests: Digests = {}
    if options.boot_aggregate_location != NONE:
        measured = measurement_list(read_text(options.boot_aggregate_location))
        if measured.algorithm != algorithm:
            raise SourceError(
                f"The boot aggregate in {options.boot_aggregate_location} is {measured.algorithm or 'missing'}, not"
                f" {algorithm}: choose the algorithm with --algo, or leave it out with --boot_aggregate-location {NONE}"
            )
        digests["boot_aggregate"] = measured.digests["boot_aggregate"][:1]
    request = build.Request(
        excludelist=options.exclude_list,
        algorithm=algorithm,
        root="" if options.rootfs_location == NONE else options.rootfs_location,
        ramdisks="" if options.ramdisk_location == NONE else options.ramdisk_location,
        skip=[part for part in options.skip_path.split(",") if part],
        digests=digests,
    )
    document: dict[str, Any] = build.build(request, datetime.fromtimestamp(time(), UTC))
    Path(options.output_file).write_text(json.dumps(document), encoding="utf-8", errors="surrogateescape")
