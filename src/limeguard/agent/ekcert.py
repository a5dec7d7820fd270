"""EK certificates as a TPM stores them, turned into the PEM text that is registered. Pure.

Vendors pad the memory behind a certificate and join the chain's certificates without a gap; the outer length of each
DER SEQUENCE says where it ends. What a certificate says is judged by the registrar, also when it is malformed inside.
"""

import base64
import textwrap

SEQUENCE = 0x30
MAX_LENGTH_BYTES = 3


def split_certificates(data: bytes) -> list[bytes]:
    """Return the DER values at the start of `data`, one after another, up to padding or the end."""
    found: list[bytes] = []
    while (size := der_size(data)) is not None and size <= len(data):
        found.append(data[:size])
        data = data[size:]
    return found


def der_size(data: bytes) -> int | None:
    """Return the whole length of the DER SEQUENCE that `data` begins with, or None (X.690 §8.1.3)."""
    if len(data) < 2 or data[0] != SEQUENCE:
        return None
    first = data[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    if not 1 <= count <= MAX_LENGTH_BYTES or len(data) < 2 + count:
        return None
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def certificate_text(own: bytes, chain: bytes) -> str:
    """Return the EK certificate and then its chain, last stored first, as PEM; "" when there is no EK certificate.

    A chain without the EK's own certificate is not sent: its first certificate would be taken for the EK's.
    """
    mine = split_certificates(own)[:1]
    if not mine:
        return ""
    return "".join(_pem(der) for der in mine + split_certificates(chain)[::-1])


def _pem(der: bytes) -> str:
    lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode("ascii"), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
