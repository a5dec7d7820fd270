"""EK certificates out of TPM memory: padding gone, chain in order, nothing sent without the EK's own."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from limeguard.agent.ekcert import certificate_text, der_size, split_certificates


def der(content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes([0x30, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([0x30, 0x80 | len(length)]) + length + content


def blocks(text: str) -> list[bytes]:
    parts = text.split("-----BEGIN CERTIFICATE-----\n")[1:]
    return [base64.b64decode(part.split("-----END")[0]) for part in parts]


OWN, FIRST, SECOND = der(b"own" * 300), der(b"1" * 100), der(b"2" * 200)


def test_padding_is_dropped_and_the_chain_comes_last_first() -> None:
    text = certificate_text(OWN + b"\xff" * 100, FIRST + SECOND + b"\x00" * 5)
    assert blocks(text) == [OWN, SECOND, FIRST]
    assert all(len(line) <= 64 for line in text.splitlines())
    assert text.endswith("-----END CERTIFICATE-----\n")


def test_a_chain_without_the_ek_s_own_certificate_is_not_sent() -> None:
    assert certificate_text(b"", FIRST) == ""
    assert certificate_text(b"\xff" * 50, FIRST) == ""


def test_a_cut_certificate_is_not_sent() -> None:
    assert certificate_text(OWN[:-1], b"") == ""
    assert blocks(certificate_text(OWN, FIRST + SECOND[:-1])) == [OWN, FIRST]


# trust: safe-parsing
@given(st.binary(max_size=600))
def test_any_bytes_give_whole_values_from_their_start(data: bytes) -> None:
    found = split_certificates(data)
    assert data.startswith(b"".join(found))
    assert all(der_size(value) == len(value) for value in found)
