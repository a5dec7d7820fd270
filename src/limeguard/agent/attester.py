"""The node's TPM identity over the life of the agent: EK, AK and the file that makes it the same AK after a restart.

Decides when a stored AK is kept and when another is made. Blocking; all calls come from the TPM's thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from limeguard.agent.device import Device, StaleKey, TpmError
from limeguard.agent.ekcert import certificate_text
from limeguard.agent.identity import ek_hash, keep_key, load_stored_key
from limeguard.agent.templates import Algorithms
from limeguard.agent.tpm_errors import is_lost_connection, is_lost_object
from limeguard.crypto.keys import spki_pem
from limeguard.evidence.tpm.structures import PublicArea, to_2b
from limeguard.telemetry import get_logger

log = get_logger("keylime_agent")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TpmOptions:
    """Which TPM, which keys. `ek_handle` None: the EK is made from its template."""

    tcti: str
    algorithms: Algorithms
    owner_password: bytes
    ek_handle: int | None
    agent_data: Path


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """What is registered of the TPM: TPM2B_PUBLIC of both keys, the EK's PEM and its certificates (may be empty)."""

    ek_public: bytes
    ek_pem: str
    ek_certificates: str
    ak_public: bytes


class Attester:
    """Owns the TPM connection and its two keys."""

    def __init__(self, options: TpmOptions) -> None:
        """Touch nothing yet."""
        self._options = options
        self._device: Device | None = None
        self._open = False

    def open(self) -> TpmIdentity:
        """Connect, load EK and AK, and keep a new AK's blobs on disk before anybody hears of it.

        Raises TpmError, OSError, UnsafeFile; `close` is still to be called.
        """
        _, identity = self._connect()
        self._open = True
        return identity

    def _connect(self) -> tuple[Device, TpmIdentity]:
        options = self._options
        self._device = device = Device.open(options.tcti, options.algorithms, options.owner_password)
        if device.is_emulator():
            log.warning("INSECURE: this TPM is a software emulator")
            log.warning("INSECURE: whoever controls the emulator can forge every quote of this node")
            log.warning("INSECURE: use it for trials and tests only")
        ek = device.load_endorsement_key(options.ek_handle)
        pem = spki_pem(ek.public_key())
        certificates = certificate_text(*device.endorsement_certificates())
        if not certificates:
            log.info("The TPM holds no certificate for its EK")
        ak = self._load_ak(device, ek_hash(pem))
        return device, TpmIdentity(to_2b(ek.raw), pem, certificates, to_2b(ak.raw))

    def _load_ak(self, device: Device, hash_of_ek: str) -> PublicArea:
        options = self._options
        stored = load_stored_key(options.agent_data, options.algorithms, hash_of_ek)
        if stored is not None:
            try:
                area = device.load_attestation_key(stored)
            except StaleKey as problem:
                log.warning("The kept AK cannot be used (%s); a new one is made", problem)
            else:
                log.info("Loaded the kept AK")
                return area
        stored = device.create_attestation_key()
        keep_key(options.agent_data, stored, options.algorithms, hash_of_ek)
        log.info("Made a new AK")
        return device.load_attestation_key(stored)

    def activate(self, blob: bytes) -> bytes:
        """Open the registrar's challenge. Raises TpmError, ValueError."""
        return self._with_keys(lambda device: device.activate(blob))

    def release_endorsement_key(self) -> None:
        """Give back the EK's place in the TPM once it has done its work."""
        if self._device is not None:
            self._device.release_endorsement_key()

    def quote(self, nonce: bytes, mask: int, binding: bytes) -> str:
        """Return the quote string. Raises TpmError."""
        return self._with_keys(lambda device: device.quote(nonce, mask, binding))

    def quote_parts(self, nonce: bytes, mask: int, binding: bytes) -> tuple[bytes, bytes, bytes]:
        """Return TPMS_ATTEST, TPMT_SIGNATURE and PCR blob of a quote. Raises TpmError."""
        return self._with_keys(lambda device: device.quote_parts(nonce, mask, binding))

    def certify(self, challenge: bytes) -> tuple[bytes, bytes]:
        """Return TPMS_ATTEST and TPMT_SIGNATURE of the AK's certification of itself. Raises TpmError."""
        return self._with_keys(lambda device: device.certify(challenge))

    def bank_pcrs(self) -> tuple[int, ...]:
        """Return the PCRs of the bank that is quoted. Raises TpmError."""
        return self._with_keys(Device.bank_pcrs)

    @property
    def ak_number(self) -> int:
        """Return the library's own number of the AK."""
        return 0 if self._device is None else self._device.ak_number

    def _with_keys(self, use: Callable[[Device], T]) -> T:
        """Use the TPM. Under a running agent it may be reset or go away: keys and connection are then made again.

        A try that fails leaves nothing half open; the next one begins anew.
        """
        if not self._open:
            raise TpmError("The TPM is closed.")
        if self._device is not None:
            try:
                return use(self._device)
            except TpmError as problem:
                if not (is_lost_object(problem.code) or is_lost_connection(problem.code)):
                    raise
                log.warning("The TPM has lost the keys that were loaded, or its connection; they are made again")
                self._drop()
        try:
            device = self._connect()[0]
            result = use(device)
        except BaseException:
            self._drop()
            raise
        self.release_endorsement_key()
        return result

    def _drop(self) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None

    def close(self) -> None:
        """Flush both keys and disconnect. Never raises; may be called again."""
        self._open = False
        self._drop()
