"""Commands about stored policies: add, update, show, delete, list. The answers are shown as they came."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from limeguard.telemetry import clean
from limeguard.tenant.context import Context
from limeguard.tenant.downloads import download
from limeguard.tenant.errors import TenantError
from limeguard.tenant.nodes import Command
from limeguard.tenant.policies import PolicyFiles, prepare
from limeguard.tenant.report import error
from limeguard.wire.operator_view import boot_policy_body, runtime_policy_body

BAD = 400


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of stored policy: where it lives, and the words its commands have always used."""

    collection: str
    noun: str
    listed: str
    shown: str
    missing_name: str
    missing_name_asked: str


RUNTIME = Kind(
    collection="/allowlists/",
    noun="a runtime policy",
    listed="list command response",
    shown="Show allowlist command response",
    missing_name="runtime_policy_name is required to add a runtime policy",
    missing_name_asked="--allowlist_name or --runtime_policy_name is required to {} a runtime policy",
)
BOOT = Kind(
    collection="/mbpolicies/",
    noun="a measured boot policy",
    listed="listmbpolicy command response",
    shown="showmbpolicy command response",
    missing_name="mb_policy_name is required to add measure boot policy",
    missing_name_asked="--mb_policy_name is required to {} a runtime policy",
)


async def _answered(context: Context, method: str, path: str, body: bytes | None = None, heading: str = "") -> int:
    """Send a request, show the answer, and return the exit status."""
    reply = await context.verifier.call(method, path, body)
    document = reply.document if reply.document is not None else {}
    context.report.answer("policy", document, f"{heading}: {reply.http_status}." if heading else "")
    if reply.http_status >= BAD:
        error(context.report, clean(repr(document), 8192))
        return 1
    return 0


def _uploaded_name(context: Context, kind: Kind) -> str:
    request = context.request
    name = (request.runtime_policy_name or request.allowlist_name) if kind is RUNTIME else request.mb_policy_name
    if not name:
        raise TenantError(kind.missing_name)
    return _segment(name)


def _asked_name(context: Context, kind: Kind, verb: str) -> str:
    request = context.request
    name = request.policy_name if kind is RUNTIME else request.mb_policy_name
    if not name:
        raise TenantError(kind.missing_name_asked.format(verb))
    return _segment(name)


def _segment(name: str) -> str:
    """Return a policy's name as one segment of a path."""
    if name in {".", ".."}:
        raise TenantError(f"a policy cannot be called {name}")
    return quote(name, safe="")


async def _body(context: Context, kind: Kind) -> bytes:
    request = context.request
    url = request.runtime_policy_url
    downloaded = await download(url, context) if url else None
    policies = prepare(request, PolicyFiles(downloaded, context.rules.default_boot_policy), context.report)
    if kind is BOOT:
        if policies.boot is None:
            raise TenantError("--mb-policy is required: it names the file of the policy")
        return boot_policy_body(policies.boot)
    if not policies.runtime:
        raise TenantError("--runtime-policy or --runtime-policy-url is required: it names the policy")
    return runtime_policy_body(tpm_policy=policies.tpm_policy, policy=policies.runtime, key=policies.runtime_key)


def _upload(kind: Kind, method: str) -> Command:
    async def command(context: Context) -> int:
        name = _uploaded_name(context, kind)
        return await _answered(context, method, f"{kind.collection}{name}", await _body(context, kind))

    return command


def _show(kind: Kind) -> Command:
    async def command(context: Context) -> int:
        name = _asked_name(context, kind, "show")
        return await _answered(context, "GET", f"{kind.collection}{name}", heading=kind.shown)

    return command


def _delete(kind: Kind) -> Command:
    async def command(context: Context) -> int:
        name = _asked_name(context, kind, "delete")
        return await _answered(context, "DELETE", f"{kind.collection}{name}")

    return command


def _list(kind: Kind) -> Command:
    async def command(context: Context) -> int:
        return await _answered(context, "GET", kind.collection, heading=kind.listed)

    return command


def _commands(kind: Kind, name: str) -> Mapping[str, Command]:
    return {
        f"add{name}": _upload(kind, "POST"),
        f"update{name}": _upload(kind, "PUT"),
        f"show{name}": _show(kind),
        f"delete{name}": _delete(kind),
        f"list{name}": _list(kind),
    }


COMMANDS: Mapping[str, Command] = {**_commands(RUNTIME, "runtimepolicy"), **_commands(BOOT, "mbpolicy")}
