"""The first entry of an IMA log, `boot_aggregate`: believed from a boot log only where the quote confirms that log."""

import gzip
import json
from base64 import b64encode
from pathlib import Path

import pytest
from tests.fakes.shared import shared_path

from limeguard.appraisal.appraise import Evidence, Expected, appraise
from limeguard.appraisal.history import History
from limeguard.appraisal.runtime import RuntimeExpected
from limeguard.appraisal.verdict import Check
from limeguard.evidence.tpm.structures import parse_public_2b
from limeguard.policy.keyring import EMPTY_KEYRING
from limeguard.policy.pcrs import from_operator
from limeguard.policy.runtime import compile_document, empty_policy_document


@pytest.fixture(scope="module")
def capture() -> Path:
    return shared_path("fixtures/vm") / "grub-off-imang"


def policy_of_files(root: Path) -> RuntimeExpected:
    """Return a policy that lists every file of the machine, and no boot aggregate."""
    document = empty_policy_document()
    files = gzip.decompress((root / "guest-files.sha256.gz").read_bytes()) + (root / "initrd-files.sha256").read_bytes()
    for line in files.decode("utf-8", "surrogateescape").splitlines():
        digest, _, path = line.partition("  ")
        document["digests"].setdefault(path, []).append(digest)
    return RuntimeExpected(policy=compile_document(document), verification_keys=EMPTY_KEYRING)


def unlisted(capture: Path, boot_log: bytes | None, runtime: RuntimeExpected) -> list[object]:
    """Return the paths that an answer of the captured machine is found to have used without leave."""
    meta = json.loads((capture / "meta.json").read_text())
    taken = meta["quotes"][0]
    parts = (b64encode((capture / taken[name]).read_bytes()).decode() for name in ("message", "signature", "pcrs"))
    evidence = Evidence(
        quote="r" + ":".join(parts),
        hash_alg=taken["hash"],
        enc_alg=taken["key"],
        sign_alg=taken["scheme"],
        public_key=None,
        ima_log=(capture / "ima.ascii").read_text(),
        boot_log=boot_log,
    )
    expected = Expected(
        ak=parse_public_2b((capture / taken["ak"]).read_bytes()),
        nonce=bytes.fromhex(meta["nonce_hex"]),
        accept_hash=("sha256",),
        accept_enc=("rsa",),
        accept_sign=("rsassa",),
        pcrs=from_operator("{}"),
        required_selection=frozenset({10}),
        identity_only_allowed=True,
        runtime=runtime,
    )
    appraisal = appraise(evidence, expected, History(public_key="known"), 0.0)
    assert Check.IMA_LOG in appraisal.ran, appraisal.findings
    found = appraisal.findings
    return [finding.context["path"] for finding in found if "path" in finding.context]


def test_the_boot_log_vouches_for_the_aggregate_that_the_policy_does_not_list(capture: Path) -> None:
    runtime = policy_of_files(capture.parent)
    log = (capture / "uefi.bin").read_bytes()
    assert unlisted(capture, log, runtime) == []
    # What one node's log vouched for counts for no other node, nor for the next answer without a log.
    assert unlisted(capture, None, runtime) == ["boot_aggregate"]


def test_a_log_that_the_quote_does_not_confirm_vouches_for_nothing(capture: Path) -> None:
    # trust: replayed-before-believed
    root = capture.parent
    other = (root / "sdboot-off-imang" / "uefi.bin").read_bytes()
    assert unlisted(capture, other, policy_of_files(root)) == ["boot_aggregate"]
