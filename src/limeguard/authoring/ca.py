"""A small certificate authority in one directory: makes itself, issues, packs, revokes, and says what it has issued.

The directory is Keylime's: `cacert.crt`, `ca-public.pem`, `cacrl.der`, `cacrl.pem`, the encrypted `private.yml`, and
for each name `NAME-cert.crt`, `NAME-public.pem`, `NAME-private.pem`. Time and randomness are handed in.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from limeguard.authoring import certificates as profile
from limeguard.authoring import keystore
from limeguard.authoring.files import OWN_FILE, Folder, open_folder
from limeguard.authoring.keystore import KeyStore
from limeguard.authoring.packing import make_zip
from limeguard.authoring.settings import CaSettings

CA_CERTIFICATE = "cacert.crt"
CA_PUBLIC = "ca-public.pem"
CRL_DER = "cacrl.der"
CRL_PEM = "cacrl.pem"
KEY_STORE = "private.yml"

REMOVED_BY_INIT = (".pem", ".crt", ".zip", ".der")
NAME = re.compile(r"\w[\w.-]*", re.ASCII)
CERTIFICATE_SUFFIX = "-cert.crt"


class CaError(Exception):
    """The authority cannot do what was asked; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that the authority has issued, as its file says."""

    name: str
    certificate: x509.Certificate
    revoked: bool = False

    @property
    def serial(self) -> int:
        """The serial number."""
        return self.certificate.serial_number

    @property
    def subject(self) -> str:
        """The subject as RFC 4514 text."""
        return self.certificate.subject.rfc4514_string()

    @property
    def expires(self) -> datetime:
        """When the certificate ends (UTC)."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthority:
    """The authority in a directory. `password` opens its key store."""

    directory: Path
    settings: CaSettings
    password: str = field(repr=False)
    clock: Callable[[], float] = time.time
    randomness: Callable[[int], bytes] = os.urandom

    @property
    def exists(self) -> bool:
        """Whether there is a CA certificate."""
        return (self.directory / CA_CERTIFICATE).exists()

    def init(self) -> None:
        """Make a new authority; whatever was in the directory of an older one is removed. Raises CaError."""
        self._check_password()
        key = profile.new_key(self.settings.cert_bits)
        certificate = profile.build_ca(self.settings, key, self._now())
        with open_folder(self.directory, create=True) as folder:
            for name in folder.names():
                if name.endswith(REMOVED_BY_INIT) or name == KEY_STORE:
                    folder.remove(name)
            store = KeyStore(profile.key_pem(key), profile.CA_SERIAL)
            self._save(folder, store)
            folder.write(CA_PUBLIC, profile.public_pem(certificate))
            self._write_crl(folder, store, certificate)
            # Last: a directory with this file is taken for a finished authority.
            folder.write(CA_CERTIFICATE, profile.certificate_pem(certificate))

    def create(self, name: str, *, names: Sequence[str] = (), key_password: str = "") -> Issued:
        """Issue key and certificate. `names` are DNS names and addresses, by default the name. Raises CaError."""
        check_name(name)
        with open_folder(self.directory, create=False) as folder:
            issuer, store = self._certificate(folder), self._load(folder)
            ca_key = _ca_key(store, issuer)
            serial = store.last_serial + 1
            key = profile.new_key(self.settings.cert_bits)
            certificate = profile.build_leaf(
                self.settings,
                issuer,
                ca_key,
                key.public_key(),
                name=name,
                serial=serial,
                names=names or (name,),
                now=self._now(),
            )
            key_pem = profile.key_pem(key, key_password)
            # The serial is spent before the certificate can be seen.
            self._save(folder, store.with_key(name, key_pem, serial))
            folder.write(f"{name}-private.pem", key_pem)
            folder.write(f"{name}-public.pem", profile.public_pem(certificate))
            folder.write(name + CERTIFICATE_SUFFIX, profile.certificate_pem(certificate))
        return Issued(name, certificate)

    def package(self, name: str) -> Path:
        """Write `NAME-pkg.zip` with key, certificate, CA and list of revoked ones. Raises CaError."""
        check_name(name)
        file_name = f"{name}-pkg.zip"
        with open_folder(self.directory, create=False) as folder:
            folder.write(file_name, make_zip(package_files(folder, name), self._now()), OWN_FILE)
        return self.directory / file_name

    def revoke(self, name: str) -> int:
        """Put the certificate of a name on the list of revoked ones; return its serial. Raises CaError."""
        check_name(name)
        with open_folder(self.directory, create=False) as folder:
            issuer, store = self._certificate(folder), self._load(folder)
            serial = self._issued(folder, name).serial
            store = store.with_revoked(serial)
            self._save(folder, store)
            self._write_crl(folder, store, issuer)
        return serial

    def import_key(self, pem: bytes, last_serial: int) -> None:
        """Put the private key of a CA made elsewhere into a new store. Raises CaError.

        A store of the same key is kept, with the higher serial; one of another key is not overwritten.
        """
        self._check_password()
        key = _private_key(pem, "the file holds no unencrypted private key in PEM that a CA can use")
        store = KeyStore(profile.key_pem(key), last_serial)
        with open_folder(self.directory, create=True) as folder:
            if folder.has(CA_CERTIFICATE):
                _ca_key(store, self._certificate(folder))
            if folder.has(KEY_STORE):
                store = self._merged(self._load(folder), store)
            self._save(folder, store)
            if folder.has(CA_CERTIFICATE):
                certificate = self._certificate(folder)
                folder.write(CA_PUBLIC, profile.public_pem(certificate))
                self._write_crl(folder, store, certificate)

    def issued(self) -> tuple[Issued, ...]:
        """Return all certificates whose files are there, by serial. Needs no password. Raises CaError."""
        with open_folder(self.directory, create=False) as folder:
            self._certificate(folder)
            names = [name for name in folder.names() if name.endswith(CERTIFICATE_SUFFIX)]
            found = [self._issued(folder, name.removesuffix(CERTIFICATE_SUFFIX)) for name in names]
        return tuple(sorted(found, key=lambda each: each.serial))

    def find(self, name: str) -> Issued:
        """Return the certificate of a name. Needs no password. Raises CaError."""
        check_name(name)
        with open_folder(self.directory, create=False) as folder:
            return self._issued(folder, name)

    def _now(self) -> datetime:
        return profile.whole_seconds(self.clock())

    def _check_password(self) -> None:
        if not self.password:
            raise CaError("The password of a key store must not be empty.")

    def _load(self, folder: Folder) -> KeyStore:
        data = folder.read(KEY_STORE)
        if data is None:
            raise CaError(f"There is no key store {KEY_STORE} in {self.directory}; make a CA there with init.")
        self._check_password()
        return keystore.unseal(data, self.password)

    def _save(self, folder: Folder, store: KeyStore) -> None:
        salt, iv = self.randomness(keystore.SALT_SIZE), self.randomness(keystore.IV_SIZE)
        folder.write(KEY_STORE, keystore.seal(store, self.password, salt=salt, iv=iv))

    def _certificate(self, folder: Folder) -> x509.Certificate:
        data = folder.read(CA_CERTIFICATE)
        if data is None:
            raise CaError(f"There is no CA certificate {CA_CERTIFICATE} in {self.directory}; make a CA with init.")
        return _parse_certificate(data, CA_CERTIFICATE)

    def _issued(self, folder: Folder, name: str) -> Issued:
        data = folder.read(name + CERTIFICATE_SUFFIX)
        if data is None:
            raise CaError(f"There is no certificate for {name} in {self.directory}.")
        certificate = _parse_certificate(data, name + CERTIFICATE_SUFFIX)
        return Issued(name, certificate, self._on_crl(folder, certificate.serial_number))

    def _on_crl(self, folder: Folder, serial: int) -> bool:
        data = folder.read(CRL_PEM)
        if data is None:
            return False
        try:
            revoked = x509.load_pem_x509_crl(data)
        except ValueError as problem:
            raise CaError(f"{CRL_PEM} is no list of revoked certificates.") from problem
        return revoked.get_revoked_certificate_by_serial_number(serial) is not None

    def _write_crl(self, folder: Folder, store: KeyStore, issuer: x509.Certificate) -> None:
        crl = profile.build_crl(issuer, _ca_key(store, issuer), store.revoked, self._now())
        folder.write(CRL_DER, crl.public_bytes(serialization.Encoding.DER))
        folder.write(CRL_PEM, crl.public_bytes(serialization.Encoding.PEM))

    def _merged(self, old: KeyStore, new: KeyStore) -> KeyStore:
        complaint = f"{self.directory / KEY_STORE} belongs to another CA; remove it first."
        if _public_bytes(_private_key(old.ca_key, complaint)) != _public_bytes(_private_key(new.ca_key, complaint)):
            raise CaError(complaint)
        return KeyStore(old.ca_key, max(old.last_serial, new.last_serial), old.revoked, old.keys)


def check_name(name: str) -> None:
    """Refuse a name that cannot be a file name and a common name. Raises CaError."""
    if not NAME.fullmatch(name) or len(name) > profile.MAX_NAME or name in keystore.RESERVED:
        allowed = f"letters, digits, '_', '.' and '-', at most {profile.MAX_NAME} of them"
        raise CaError(f"{name[: 2 * profile.MAX_NAME]!r} cannot be the name of a certificate: use {allowed}.")


def package_files(folder: Folder, name: str) -> dict[str, bytes]:
    """Return the content of a certificate package by file name. Raises CaError."""
    files: dict[str, bytes] = {}
    own = (f"{name}-public.pem", name + CERTIFICATE_SUFFIX, f"{name}-private.pem")
    for file_name in (*own, CA_CERTIFICATE, CRL_DER, CRL_PEM):
        data = folder.read(file_name)
        if data is None:
            raise CaError(f"A package for {name} needs {folder.path / file_name}, which is not there.")
        files[file_name] = data
    return files


def _parse_certificate(data: bytes, name: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as problem:
        raise CaError(f"{name} holds no PEM certificate.") from problem


def _private_key(pem: bytes, complaint: str) -> RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise CaError(f"The private key cannot be read: {complaint}") from problem
    if not isinstance(key, RSAPrivateKey):
        raise CaError("The private key of a CA must be an RSA key here.")
    return key


def _ca_key(store: KeyStore, issuer: x509.Certificate) -> RSAPrivateKey:
    key = _private_key(store.ca_key, "the key store holds no usable CA key")
    if key.public_key() != issuer.public_key():
        raise CaError(f"The private key does not belong to {CA_CERTIFICATE}.")
    return key


def _public_bytes(key: RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
