"""Which operation a request names, and every refusal of the protocol's table, word for word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limeguard.agent.table import Found, Operation, Refusal, resolve
from limeguard.wire.versions import AGENT_VERSIONS as VERSIONS

OPERATIONS = [
    ("GET", "/keys/pubkey", Operation.PUBKEY),
    ("POST", "/keys/ukey", Operation.UKEY),
    ("POST", "/keys/vkey", Operation.VKEY),
    ("GET", "/keys/verify", Operation.VERIFY),
    ("GET", "/quotes/identity", Operation.IDENTITY),
    ("GET", "/quotes/integrity", Operation.INTEGRITY),
    ("GET", "/agent/info", Operation.INFO),
    ("POST", "/notifications/revocation", Operation.REVOCATION),
]
OUTSIDE = "Not Implemented: Use /2.1, /2.2, /2.3, /2.4, /2.5, /2.6 or /version interfaces"
KEYS_GET = "URI not supported, only /pubkey and /verify are supported for GET in /keys interface"
KEYS_POST = "URI not supported, only /ukey and /vkey are supported for POST in /keys interface"
QUOTES_GET = "URI not supported, only /identity and /integrity are supported for GET in /quotes/ interface"
AGENT_GET = "URI not supported, only /info is supported for GET in /agent interface"
NOTICES_POST = "URI not supported, only /revocation is supported for POST in /notifications/ interface"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_operation_is_found_under_every_version(
    method: str, path: str, operation: Operation, version: str
) -> None:
    expected: Found | Refusal = Found(operation, version)
    if operation is Operation.INFO and version == "2.1":
        expected = Refusal(400, "Not Implemented: Use /agent, /keys, or /quotes interfaces")
    assert resolve(method, f"/v{version}{path}", VERSIONS) == expected


def test_the_version_is_asked_for_without_a_version() -> None:
    assert resolve("GET", "/version", VERSIONS) == Found(Operation.VERSION, "")


@pytest.mark.parametrize(
    ("method", "path", "status", "text", "allow"),
    [
        ("GET", "/v2.0/keys/pubkey", 400, "API version not supported: v2.0", None),
        ("POST", "/v9.9/keys/ukey", 400, "API version not supported: v9.9", None),
        ("PUT", "/v9.9/anything", 400, "API version not supported: v9.9", None),
        ("GET", "/v1.0", 400, "API version not supported: v1.0", None),
        ("GET", "/", 400, OUTSIDE, None),
        ("POST", "/", 400, OUTSIDE, None),
        ("GET", "/v2/keys/pubkey", 400, OUTSIDE, None),
        ("GET", "/versions", 400, OUTSIDE, None),
        ("PUT", "/", 405, "Method is not supported", "GET, POST"),
        ("HEAD", "/nothing", 405, "Method is not supported", "GET, POST"),
        ("POST", "/version", 405, "", "GET"),
        ("HEAD", "/version", 405, "", "GET"),
        ("PUT", "/v2.6/keys/pubkey", 405, "", "GET"),
        ("HEAD", "/v2.6/keys/pubkey", 405, "", "GET"),
        ("GET", "/v2.6/keys/ukey", 405, "", "POST"),
        ("DELETE", "/v2.6/quotes/identity", 405, "", "GET"),
        ("GET", "/v2.6/notifications/revocation", 405, "", "POST"),
        ("GET", "/v2.6/", 400, "Not Implemented: Use /agent, /keys, or /quotes interfaces", None),
        ("GET", "/v2.6", 400, "Not Implemented: Use /agent, /keys, or /quotes interfaces", None),
        ("GET", "/v2.6/nothing/here", 400, "Not Implemented: Use /agent, /keys, or /quotes interfaces", None),
        ("POST", "/v2.6/nothing", 400, "Not Implemented: Use /keys or /notifications interfaces", None),
        ("PATCH", "/v2.6/nothing", 405, "Method is not supported", "GET, POST"),
        ("GET", "/v2.6/keys", 400, KEYS_GET, None),
        ("GET", "/v2.6/keys/nothing", 400, KEYS_GET, None),
        ("GET", "/v2.6/keys/pubkey/", 400, KEYS_GET, None),
        ("POST", "/v2.6/keys/nothing", 400, KEYS_POST, None),
        ("PUT", "/v2.6/keys/nothing", 405, "Method is not supported in /keys interface", "GET, POST"),
        ("GET", "/v2.6/quotes/nothing", 400, QUOTES_GET, None),
        ("POST", "/v2.6/quotes/nothing", 405, "Method is not supported in /quotes/ interface", "GET"),
        ("GET", "/v2.6/agent/nothing", 400, AGENT_GET, None),
        ("POST", "/v2.6/agent/nothing", 405, "Method is not supported in /agent interface", "GET"),
        ("POST", "/v2.6/notifications/nothing", 400, NOTICES_POST, None),
        ("GET", "/v2.6/notifications/nothing", 405, "Method is not supported in /notifications/ interface", "POST"),
        ("GET", "/v2.6/keysring", 400, "Not Implemented: Use /agent, /keys, or /quotes interfaces", None),
    ],
)
def test_a_refusal_is_the_one_clients_know(method: str, path: str, status: int, text: str, allow: str | None) -> None:
    assert resolve(method, path, VERSIONS) == Refusal(status, text, allow)


def test_only_enabled_versions_are_served_and_named() -> None:
    assert resolve("GET", "/v2.6/keys/pubkey", ("2.1", "2.2")) == Refusal(400, "API version not supported: v2.6")
    text = "Not Implemented: Use /2.1, /2.2 or /version interfaces"
    assert resolve("GET", "/elsewhere", ("2.1", "2.2")) == Refusal(400, text)


# trust: default-deny
@given(method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "BREW"]), path=st.text(max_size=80))
def test_anything_else_is_refused_with_a_known_status(method: str, path: str) -> None:
    found = resolve(method, "/" + path, VERSIONS)
    if isinstance(found, Refusal):
        assert found.status in {400, 405}
        assert (found.allow is not None) == (found.status == 405)
    else:
        assert (method, path) in {("GET", "version")} | {
            (known, f"v{version}{rest}") for known, rest, _ in OPERATIONS for version in VERSIONS
        }
