"""The TPM core against tools and a TPM that others wrote."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from limeguard.cli.softtpm import SoftwareTpm
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.tpm.credential import make_credential, parse_credential_blob
from limeguard.evidence.tpm.quote import QuotedPcrs, build_quote_string, parse_quote, verify_quote
from limeguard.evidence.tpm.structures import parse_public_2b
from limeguard.simulator.softtpm import SoftAk, SoftEk

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("swtpm-tools")]

STRONG = frozenset({"sha256", "sha384", "sha512"})
SECRET = b"abcdefghijklmnopqrstuvwxyz012345"


class Tools:
    """tpm2-tools in a folder of their own, with a software TPM or without."""

    def __init__(self, folder: Path, tcti: str) -> None:
        self.folder, self.tcti = folder, tcti

    def __call__(self, *command: str) -> str:
        environment = {"PATH": os.environ["PATH"], "TPM2TOOLS_TCTI": self.tcti, "TSS2_LOG": "all+none"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def flush(self) -> None:
        for kind in ("-t", "-l", "-s"):
            self("tpm2_flushcontext", kind)

    def bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    folder = tmp_path_factory.mktemp("tpm")
    tpm = SoftwareTpm(folder / "state", folder / "ca", folder)
    tpm.create("sha256,sha384")
    tpm.start()
    yield Tools(folder, tpm.tcti)
    tpm.stop()


@pytest.mark.parametrize("kind", ["rsa2048", "ecc256", "ecc384"])
def test_tpm2_checkquote_accepts_a_quote_of_ours(kind: str, tmp_path: Path) -> None:
    ak = SoftAk.generate(kind)
    attest, signature, blob = ak.quote_parts(b"\x01\x02\x03", {0: b"\x11" * 32, 10: b"\x22" * 32})
    files = {"ak.pem": spki_pem(ak.area.key).encode(), "q.msg": attest, "q.sig": signature, "q.pcrs": blob}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    check = Tools(tmp_path, "none")
    command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "q.msg", "-s", "q.sig", "-f", "q.pcrs", "-g", "sha256"]
    check(*command, "-q", "010203")
    with pytest.raises(AssertionError):
        check(*command, "-q", "010204")


@pytest.mark.parametrize(("key", "scheme"), [("rsa", "rsassa"), ("rsa", "rsapss"), ("ecc", "ecdsa")])
def test_a_quote_of_a_tpm_holds(tools: Tools, key: str, scheme: str) -> None:
    tools("tpm2_createek", "-G", key, "-c", "ek.ctx", "-u", "ek.pub")
    tools.flush()
    tools("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", key, "-g", "sha256", "-s", scheme, "-u", "ak.pub")
    tools.flush()
    pcrs = "sha256:0,1,7,10,16"
    files = ("-m", "m", "-s", "s", "-o", "p", "-F", "serialized")
    tools("tpm2_quote", "-c", "ak.ctx", "--scheme", scheme, "-l", pcrs, "-q", "aabb", *files)
    tools.flush()
    ak = parse_public_2b(tools.bytes("ak.pub"))
    text = build_quote_string(tools.bytes("m"), tools.bytes("s"), tools.bytes("p"))
    outcome = verify_quote(parse_quote(text), key=ak, nonce=b"\xaa\xbb", accepted_hashes=STRONG)
    assert isinstance(outcome, QuotedPcrs)
    assert set(outcome.values) == {0, 1, 7, 10, 16}


@pytest.mark.parametrize("key", ["rsa", "ecc"])
def test_a_tpm_opens_a_credential_of_ours(tools: Tools, key: str) -> None:
    tools("tpm2_createek", "-G", key, "-c", "ek.ctx", "-u", "ek.pub")
    tools.flush()
    tools("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", key, "-g", "sha256", "-u", "ak.pub")
    tools.flush()
    ek, ak = parse_public_2b(tools.bytes("ek.pub")), parse_public_2b(tools.bytes("ak.pub"))
    blob = make_credential(ek, ak.name, SECRET, seed=os.urandom(32), ephemeral_scalar=int.from_bytes(os.urandom(31)))
    (tools.folder / "blob").write_bytes(blob)
    tools("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
    tools("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
    tools(
        "tpm2_activatecredential",
        "-c",
        "ak.ctx",
        "-C",
        "ek.ctx",
        "-i",
        "blob",
        "-o",
        "out",
        "-P",
        "session:session.ctx",
    )
    tools.flush()
    assert tools.bytes("out") == SECRET


def test_a_credential_of_tpm2_makecredential_opens_in_our_fake(tmp_path: Path) -> None:
    ek, ak = SoftEk.generate("rsa2048"), SoftAk.generate()
    (tmp_path / "ek.pub").write_bytes(ek.public_2b)
    (tmp_path / "secret").write_bytes(SECRET)
    name = ak.area.name.hex()
    Tools(tmp_path, "none")(
        "tpm2_makecredential", "-T", "none", "-u", "ek.pub", "-s", "secret", "-n", name, "-o", "blob"
    )
    blob = (tmp_path / "blob").read_bytes()
    parse_credential_blob(blob)
    assert ek.activate(blob, ak.area.name) == SECRET
