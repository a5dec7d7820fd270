"""The only door to the TPM: keys, quotes and the proof of being one chip, through the Enhanced System API.

Decides nothing about what is attested. Blocking, and to be used from one thread at a time. Every session and every
transient object that is made here is flushed here, on errors too: without a resource manager a TPM forgets nothing when
its client dies.
"""

import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tpm2_pytss as tss

from limeguard.agent import templates, tpm_errors
from limeguard.agent.identity import StoredKey
from limeguard.agent.templates import Algorithms
from limeguard.crypto.hashes import HashAlgorithm, hash_by_name
from limeguard.evidence.tpm.credential import parse_credential_blob
from limeguard.evidence.tpm.pcrblob import build_pcr_blob
from limeguard.evidence.tpm.quote import build_quote_string
from limeguard.evidence.tpm.structures import PublicArea, parse_public, parse_public_2b, pcrs_of_bitmap
from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent.tpm")

BINDING_PCR = 16
"""The debug PCR: anybody may reset it, so it binds the transport key to a quote and is worth nothing on its own."""
MAX_PCR = 23
QUOTE_ATTEMPTS = 5
MAX_HANDLES = 254
"""TPM 2.0 Part 2 §6.12: a list of handles holds no more."""
MAX_ROUNDS = 64
TRANSIENT_FIRST = 0x80000000
LOADED_SESSION_FIRST = 0x02000000
SAVED_SESSION_FIRST = 0x03000000
NV_INDEX_FIRST = 0x01000000
PERSISTENT_FIRST, PERSISTENT_LAST = 0x81000000, 0x81FFFFFF
NV_BUFFER_MAX = 0x12C
VENDOR_STRING_1 = 0x106
DEFAULT_NV_BLOCK = 512
NV_OWNER_READ = 0x00020000
NV_AUTH_READ = 0x00040000
MAX_NV_SIZE = 64 * 1024
MAX_PRIVATE = 1024
"""A TPM2B_PRIVATE of the largest key we make is half as long."""


class TpmError(Exception):
    """The TPM cannot do what was asked; the text is a sentence that says what to do. `code` is the TPM's own."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class StaleKey(Exception):  # noqa: N818 - a fact about the file
    """A stored AK does not belong to this EK or was altered."""


def choose_tcti(env: Mapping[str, str], dev: Path = Path("/dev")) -> str:
    """Return the TPM to use: `TCTI` of the environment, else the kernel's resource manager, else the chip itself."""
    given = env.get("TCTI", "")
    if given:
        return given
    return f"device:{dev}/tpmrm0" if (dev / "tpmrm0").exists() else f"device:{dev}/tpm0"


def is_direct(tcti: str) -> bool:
    """Say whether nothing stands between us and the TPM, so that what earlier clients left must be flushed by us."""
    name, _, rest = tcti.partition(":")
    if name == "device":
        return re.fullmatch(r"/dev/tpm[0-9]+", rest) is not None
    return name in {"swtpm", "mssim", "libtpms"}


def _known_hash(name: str) -> HashAlgorithm:
    found = hash_by_name(name)
    if found is None:
        raise TpmError(f"tpm_hash_alg = {clean(name)} is not known.")
    return found


def _quiet_library() -> None:
    """Keep the C library from writing its own lines to stderr; what matters is raised and logged by us."""
    os.environ.setdefault("TSS2_LOG", "all+none")


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except tss.TSS2_Exception as problem:
        raise TpmError(f"{doing} failed. {tpm_errors.explain(problem.rc)}", problem.rc) from problem


class Device:
    """One TPM with an EK and an AK. Open, use from one thread, close."""

    def __init__(self, context: Any, algorithms: Algorithms, owner_password: bytes) -> None:
        """Take over an open ESAPI context."""
        self._esapi = context
        self._algorithms = algorithms
        self._hash = _known_hash(algorithms.hash)
        self._lock = threading.Lock()
        self._ek: Any = None
        self._ek_is_persistent = False
        self._ek_public: PublicArea | None = None
        self._ak: Any = None
        context.tr_set_auth(tss.ESYS_TR.ENDORSEMENT, owner_password)

    @classmethod
    def open(cls, tcti: str, algorithms: Algorithms, owner_password: bytes = b"") -> "Device":
        """Connect, and on a direct connection flush what an earlier run left in the TPM. Raises TpmError."""
        _quiet_library()
        try:
            context = tss.ESAPI(tcti)
        except tss.TSS2_Exception as problem:
            text = f"Opening the TPM {clean(tcti)} failed. {tpm_errors.explain(problem.rc)}"
            raise TpmError(text, problem.rc) from problem
        device = cls(context, algorithms, owner_password)
        try:
            if is_direct(tcti):
                device.flush_leftovers()
            device.check_bank()
        except BaseException:
            device.close()
            raise
        return device

    # --- house-keeping ----------------------------------------------------------------------------------------------

    def flush_leftovers(self) -> int:
        """Flush every transient object and session and return how many there were. Only for the TPM's sole user."""
        count = 0
        with _explained("Clearing out what an earlier run left in the TPM"):
            for first in (TRANSIENT_FIRST, LOADED_SESSION_FIRST, SAVED_SESSION_FIRST):
                # Asked for anew each time: what was flushed is gone from the list.
                for _ in range(MAX_ROUNDS):
                    handles = self._handles(first)
                    for handle in handles:
                        self._esapi.flush_context(self._esapi.tr_from_tpmpublic(handle))
                    count += len(handles)
                    if not handles:
                        break
        if count:
            log.info("Flushed %d objects and sessions that an earlier run left in the TPM", count)
        return count

    def _handles(self, first: int) -> list[int]:
        """Return the handles of one kind from `first` on, at most as many as fit one answer."""
        _, data = self._esapi.get_capability(tss.TPM2_CAP.HANDLES, first, MAX_HANDLES)
        return [int(handle) for handle in data.data.handles]

    def _properties(self, first: int, count: int) -> dict[int, int]:
        _, data = self._esapi.get_capability(tss.TPM2_CAP.TPM_PROPERTIES, first, count)
        return {int(item.property): int(item.value) for item in data.data.tpmProperties}

    def check_bank(self) -> None:
        """Raise TpmError when the PCR bank of `tpm_hash_alg` is not active: quotes would be empty."""
        with _explained("Reading the PCR banks"):
            _, data = self._esapi.get_capability(tss.TPM2_CAP.PCRS, 0, 16)
        active = {int(bank.hash) for bank in data.data.assignedPCR if any(bytes(bank.pcrSelect))}
        if self._hash.tpm_id not in active:
            names = [name for name, number in templates.HASHES.items() if number in active]
            raise TpmError(
                f"The TPM has no active PCR bank {self._hash.name}. Set tpm_hash_alg to one of {', '.join(names)}, or "
                f"activate the bank in the firmware."
            )

    def is_emulator(self) -> bool:
        """Say whether the vendor string is that of a software TPM."""
        with _explained("Reading the TPM's vendor"):
            words = self._properties(VENDOR_STRING_1, 4)
        text = b"".join(words.get(VENDOR_STRING_1 + i, 0).to_bytes(4, "big") for i in range(4))
        return b"SW" in text

    def close(self) -> None:
        """Flush the EK and the AK and disconnect. Never raises; may be called again."""
        if self._esapi is None:
            return
        self.release_endorsement_key()
        if self._ak is not None:
            self._flush(self._ak)
            self._ak = None
        self._esapi.close()
        self._esapi = None

    def _flush(self, handle: Any) -> None:
        try:
            self._esapi.flush_context(handle)
        except tss.TSS2_Exception as problem:
            log.warning("Flushing an object of the TPM failed. %s", tpm_errors.explain(problem.rc))

    # --- endorsement key --------------------------------------------------------------------------------------------

    def load_endorsement_key(self, persistent: int | None = None) -> PublicArea:
        """Make the EK from its TCG template, or take the one under a persistent handle; return its public area."""
        if persistent is None:
            template, _ = tss.TPM2B_PUBLIC.unmarshal(templates.ek_template(self._algorithms.key))
            with _explained("Creating the endorsement key"):
                self._ek, public, *_ = self._esapi.create_primary(None, template, tss.ESYS_TR.ENDORSEMENT)
        else:
            if not PERSISTENT_FIRST <= persistent <= PERSISTENT_LAST:
                raise TpmError(f"ek_handle = {persistent:#010x} is not a persistent handle (0x81000000 to 0x81ffffff).")
            with _explained(f"Opening the endorsement key under ek_handle = {persistent:#010x}"):
                self._ek = self._esapi.tr_from_tpmpublic(persistent)
                public, *_ = self._esapi.read_public(self._ek)
            self._ek_is_persistent = True
        self._ek_public = parse_public_2b(public.marshal())
        if self._ek_public.auth_policy not in templates.EK_POLICY_BRANCHES:
            raise TpmError("The endorsement key has an unknown policy; ek_handle must name a key of a TCG template.")
        return self._ek_public

    def release_endorsement_key(self) -> None:
        """Give back the EK's place in the TPM; the AK stays usable."""
        if self._ek is not None and not self._ek_is_persistent:
            self._flush(self._ek)
        self._ek = None

    @contextmanager
    def _ek_session(self) -> Iterator[Any]:
        """Yield a policy session that authorises one use of the EK (TCG EK Credential Profile §B.6.2 to B.6.5)."""
        assert self._ek_public is not None  # noqa: S101 - load_endorsement_key comes first
        none = tss.ESYS_TR.NONE
        session = self._esapi.start_auth_session(
            none, none, tss.TPM2_SE.POLICY, None, tss.TPM2_ALG(self._ek_public.name_alg.tpm_id)
        )
        try:
            self._esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, expiration=0)
            branches = templates.EK_POLICY_BRANCHES[self._ek_public.auth_policy]
            if branches:
                self._esapi.policy_or(session, tss.TPML_DIGEST(list(branches)))
            yield session
        finally:
            self._flush(session)

    def endorsement_certificates(self) -> list[bytes]:
        """Return what the NV memory holds for this EK: its certificate first, then the chain's indices joined.

        An empty first element: there is no certificate. Contents are as stored, with any padding.
        """
        assert self._ek_public is not None  # noqa: S101 - load_endorsement_key comes first
        with _explained("Listing the TPM's memory"):
            defined = self._nv_indices()
        own = templates.EK_CERTIFICATE_INDEX.get(self._ek_public.key_algorithm, 0)
        certificate = self._read_index(own) if own in defined else b""
        chain = [index for index in defined if templates.EK_CHAIN_FIRST <= index <= templates.EK_CHAIN_LAST]
        return [certificate, b"".join(self._read_index(index) for index in sorted(chain))]

    def _nv_indices(self) -> list[int]:
        found: list[int] = []
        first = NV_INDEX_FIRST
        for _ in range(MAX_ROUNDS):
            more, data = self._esapi.get_capability(tss.TPM2_CAP.HANDLES, first, MAX_HANDLES)
            found += [int(handle) for handle in data.data.handles]
            if not more or not found:
                break
            first = found[-1] + 1
        return found

    def _read_index(self, index: int) -> bytes:
        """Return the content of an NV index, or nothing (with a warning) when it may not be read."""
        try:
            handle = self._esapi.tr_from_tpmpublic(index)
            public, _ = self._esapi.nv_read_public(handle)
            size = min(int(public.nvPublic.dataSize), MAX_NV_SIZE)
            by_itself = int(public.nvPublic.attributes) & NV_AUTH_READ
            authority = handle if by_itself else tss.ESYS_TR.OWNER
            block = self._properties(NV_BUFFER_MAX, 1).get(NV_BUFFER_MAX, DEFAULT_NV_BLOCK)
            parts = [
                bytes(self._esapi.nv_read(handle, min(block, size - offset), offset, auth_handle=authority))
                for offset in range(0, size, block)
            ]
            self._esapi.tr_close(handle)
        except tss.TSS2_Exception as problem:
            log.warning("NV index %#010x could not be read. %s", index, tpm_errors.explain(problem.rc))
            return b""
        return b"".join(parts)

    # --- attestation key --------------------------------------------------------------------------------------------

    def create_attestation_key(self) -> StoredKey:
        """Make an AK under the EK and return its blobs; `load_attestation_key` puts them to use. Raises TpmError."""
        template, _ = tss.TPM2B_PUBLIC.unmarshal(templates.ak_template(self._algorithms))
        with _explained("Creating the attestation key"), self._ek_session() as session:
            private, public, *_ = self._esapi.create(self._ek, None, template, session1=session)
        return StoredKey(public.marshal()[2:], bytes(private))

    def load_attestation_key(self, stored: StoredKey) -> PublicArea:
        """Load the AK from its blobs and return its public area.

        Raises StaleKey when the blobs are not of this TPM, EK and algorithms, and TpmError when the TPM cannot work
        now: only the first is a reason to make another AK.
        """
        area = self._check_stored(stored)
        sized = struct.pack(">H", len(stored.public)) + stored.public
        try:
            public, _ = tss.TPM2B_PUBLIC.unmarshal(sized)
            private = tss.TPM2B_PRIVATE(stored.private)
            with self._ek_session() as session:
                self._ak = self._esapi.load(self._ek, private, public, session1=session)
        except tss.TSS2_Exception as problem:
            if tpm_errors.is_about_parameter(problem.rc):
                raise StaleKey(tpm_errors.explain(problem.rc)) from problem
            text = f"Loading the attestation key failed. {tpm_errors.explain(problem.rc)}"
            raise TpmError(text, problem.rc) from problem
        return area

    def _check_stored(self, stored: StoredKey) -> PublicArea:
        try:
            area = parse_public(stored.public)
        except ValueError as problem:
            raise StaleKey("its public part cannot be read") from problem
        if area.key_algorithm != self._algorithms.key:
            raise StaleKey(f"it is of another type ({area.key_algorithm})")
        if len(stored.private) > MAX_PRIVATE:
            raise StaleKey("its private part is too long")
        return area

    def activate(self, blob: bytes) -> bytes:
        """Open a credential challenge: only the TPM with this EK and this AK can. Raises TpmError, ValueError."""
        id_object, secret = parse_credential_blob(blob)
        with _explained("Activating the credential"), self._ek_session() as session:
            opened = self._esapi.activate_credential(
                self._ak,
                self._ek,
                tss.TPM2B_ID_OBJECT(id_object),
                tss.TPM2B_ENCRYPTED_SECRET(secret),
                session2=session,
            )
        return bytes(opened)

    @property
    def ak_number(self) -> int:
        """Return the library's own number of the AK; it means nothing outside this process."""
        return int(self._ak)

    # --- quotes -----------------------------------------------------------------------------------------------------

    def quote(self, nonce: bytes, mask: int, binding: bytes) -> str:
        """Quote the PCRs of `mask` and PCR 16, as a quote string of the pull model. Raises TpmError."""
        return build_quote_string(*self.quote_parts(nonce, mask, binding))

    def quote_parts(self, nonce: bytes, mask: int, binding: bytes) -> tuple[bytes, bytes, bytes]:
        """Quote the PCRs of `mask` and PCR 16, which first is set to vouch for `binding`. Raises TpmError.

        Returns TPMS_ATTEST, TPMT_SIGNATURE and the PCR blob. Values that changed between quote and reading are read
        again, a few times.
        """
        pcrs = [number for number in range(MAX_PCR + 1) if (mask | 1 << BINDING_PCR) >> number & 1]
        selection = f"{self._hash.name}:{','.join(str(number) for number in pcrs)}"
        with self._lock, _explained("Quoting"):
            for _ in range(QUOTE_ATTEMPTS):
                self._bind(binding)
                quoted, signature = self._esapi.quote(self._ak, selection, nonce)
                values = self._read_pcrs(pcrs)
                attest = bytes(quoted)
                digest = self._hash.digest(b"".join(values[number] for number in pcrs))
                # The digest is the last member of the structure (TPM 2.0 Part 2 §10.12.1).
                if attest.endswith(struct.pack(">H", len(digest)) + digest):
                    return attest, bytes(signature.marshal()), build_pcr_blob({self._hash: values})
        raise TpmError("Quoting failed. PCRs kept changing while they were read; another program extends them.")

    def certify(self, challenge: bytes) -> tuple[bytes, bytes]:
        """Have the AK certify itself: the proof that whoever answers the challenge holds it. Raises TpmError.

        Returns TPMS_ATTEST and TPMT_SIGNATURE, in the AK's own scheme.
        """
        own_scheme = tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL)
        with _explained("Certifying the attestation key"):
            attest, signature = self._esapi.certify(self._ak, self._ak, challenge, own_scheme)
        return bytes(attest), bytes(signature.marshal())

    def bank_pcrs(self) -> tuple[int, ...]:
        """Return the PCRs that the bank of `tpm_hash_alg` has. Raises TpmError."""
        with _explained("Reading the PCR banks"):
            _, data = self._esapi.get_capability(tss.TPM2_CAP.PCRS, 0, 16)
        for bank in data.data.assignedPCR:
            if int(bank.hash) == self._hash.tpm_id:
                return pcrs_of_bitmap(bytes(bank.pcrSelect)[: int(bank.sizeofSelect)])
        return ()

    def _bind(self, binding: bytes) -> None:
        """Reset PCR 16 and extend it with the digest of `binding`, in the bank of the quote."""
        digest = self._hash.digest(binding)
        values, _ = tss.TPML_DIGEST_VALUES.unmarshal(struct.pack(">IH", 1, self._hash.tpm_id) + digest)
        self._esapi.pcr_reset(tss.ESYS_TR.PCR16)
        self._esapi.pcr_extend(tss.ESYS_TR.PCR16, values)

    def _read_pcrs(self, pcrs: list[int]) -> dict[int, bytes]:
        """Read PCRs; the TPM gives at most eight at a time."""
        values: dict[int, bytes] = {}
        for start in range(0, len(pcrs), 8):
            part = pcrs[start : start + 8]
            _, _, digests = self._esapi.pcr_read(f"{self._hash.name}:{','.join(str(number) for number in part)}")
            if len(digests) != len(part):
                raise TpmError(f"The TPM does not have all of PCRs {part} in its bank {self._hash.name}.")
            values.update(zip(part, (bytes(digest) for digest in digests), strict=True))
        return values
