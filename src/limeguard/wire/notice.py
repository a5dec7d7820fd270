"""Notices about nodes that lost trust, byte for byte as agents and webhooks of Keylime's sites read them (§15.5)."""

import json
from base64 import b64encode
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key


class NoticeKeyError(ValueError):
    """The node's key cannot sign notices."""


def notice_text(
    *,
    kind: str,
    ip: str | None,
    agent_id: str,
    port: int | None,
    tpm_policy: str,
    meta_data: str | None,
    at: str,
    event_id: str,
    severity_label: str,
    context: dict[str, Any],
) -> str:
    """Return the signed text. The order of members, and the blanks after commas and colons, are part of the format.

    `context` becomes JSON text inside; `at` is local time as C's `asctime` writes it.
    """
    return json.dumps(
        {
            "type": kind,
            "ip": ip,
            "agent_id": agent_id,
            "port": port,
            "tpm_policy": tpm_policy,
            "meta_data": meta_data,
            "event_time": at,
            "event_id": event_id,
            "severity_label": severity_label,
            "context": json.dumps(context),
        }
    )


def transport(text: str, key_pem: str) -> bytes:
    """Return the body that is sent: the text and its signature, empty without a key. Raises NoticeKeyError."""
    return json.dumps({"msg": text, "signature": _signature(text, key_pem) if key_pem else ""}).encode()


def _signature(text: str, key_pem: str) -> str:
    try:
        key = load_pem_private_key(key_pem.encode(), None)
    except (ValueError, TypeError) as problem:
        raise NoticeKeyError(f"the key that signs notices cannot be read: {problem}") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise NoticeKeyError("the key that signs notices is not an RSA key")
    salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    return b64encode(key.sign(text.encode(), salted, hashes.SHA256())).decode()
