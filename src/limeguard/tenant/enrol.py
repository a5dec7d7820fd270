"""Add and update: have a node prove itself, hand it its half of the payload key, and put it under supervision.

The order is the promise: registration, proof, EK, and only then secrets. What carries a secret takes a `ProvenNode`.
"""

import hmac

import msgspec

from limeguard.crypto import chains, keysplit
from limeguard.telemetry import clean
from limeguard.tenant.context import Context
from limeguard.tenant.downloads import download
from limeguard.tenant.ekcheck import ek_accepted
from limeguard.tenant.errors import TenantError
from limeguard.tenant.identity import (
    ProvenNode,
    appraise_identity,
    make_nonce,
    prove,
    registered_ak,
    unaccepted_algorithm,
)
from limeguard.tenant.nodes import CONFLICT, OK, registered, supervised, unsupervise
from limeguard.tenant.packing import delivery_for
from limeguard.tenant.payload import NOTHING, Delivery
from limeguard.tenant.policies import Policies, PolicyFiles, prepare
from limeguard.tenant.report import error, info, warning
from limeguard.tenant.servers import AgentLink, Reply
from limeguard.tenant.target import Target, find_target
from limeguard.web.answers import Unreachable, make_pin
from limeguard.wire import agent_v2, versions
from limeguard.wire.operator_view import DISABLED_CERTIFICATE, Registration, base64_text
from limeguard.wire.verifier_v2 import EnrolmentRequest

NOT_READY = frozenset({503, 504})


async def add(context: Context) -> int:
    """Put a node under supervision."""
    return await _enrol(context, replace=False)


async def update(context: Context) -> int:
    """Put a node under supervision anew, with other policies or another payload.

    A node that does not prove itself keeps the supervision it has.
    """
    return await _enrol(context, replace=True)


async def _enrol(context: Context, *, replace: bool) -> int:
    policies = await _policies(context)
    # Certificates are made for nodes that proved themselves; what lies in files is read before anything is asked.
    delivery = NOTHING if context.request.cert else delivery_for(context)
    registration = await registered(context)
    if registration is None:
        raise TenantError(f"Agent ${context.request.node} data not found in the Registrar.")
    target = find_target(context.request, registration)
    if context.request.push_model:
        return await _enrol_unseen(context, target, registration, policies, replace=replace)
    link = _link(context, target, registration)
    version = await _agent_version(context, link, target)
    proven = await _prove(context, link, version, target, registration)
    if context.request.cert:
        delivery = delivery_for(context)
    if replace and (failed := await unsupervise(context, target.supervised)):
        return failed
    if delivery.has_key:
        await _deliver(link, version, proven, delivery, target)
    await _supervise(context, target, registration, policies, delivery, version)
    if context.request.verify:
        return await _confirmed(context, link, version, delivery, target)
    return 0


async def _policies(context: Context) -> Policies:
    url = context.request.runtime_policy_url
    downloaded = await download(url, context) if url else None
    return prepare(context.request, PolicyFiles(downloaded, context.rules.default_boot_policy), context.report)


async def _enrol_unseen(
    context: Context, target: Target, registration: Registration, policies: Policies, *, replace: bool
) -> int:
    """Enrol a node that calls the verifier itself. It is not asked for a proof here, and gets no secret either."""
    request = context.request
    if not context.rules.ek.nothing and not await ek_accepted(
        context.rules.ek, request.node, target.shown, registration, context.report, context.edges.now()
    ):
        warning(
            context.report, f"The EK of {target.shown} is not accepted; a push model agent is enrolled nevertheless"
        )
    version = request.agent_api_version or versions.CURRENT
    info(context.report, f"Using API version {version} for agent communication")
    if replace and (failed := await unsupervise(context, target.supervised)):
        return failed
    await _supervise(context, target, registration, policies, NOTHING, version)
    return 0


def _link(context: Context, target: Target, registration: Registration) -> AgentLink:
    """Reach the agent under the certificate that it registered, and under no other."""
    certificate = registration.tls_certificate
    if certificate == DISABLED_CERTIFICATE:
        if context.rules.agent_tls:
            raise TenantError(f"{target.shown} registered without TLS, and enable_agent_mtls of the tenant asks for it")
        warning(context.report, f"{target.shown} has no TLS: what is said to it can be read and changed on the way")
        return AgentLink(target.host, target.port, context.edges.agents, None)
    if not certificate:
        raise TenantError(f"{target.shown} registered no TLS certificate (its API is older than 2.0)")
    try:
        pin = make_pin(chains.first_certificate(certificate.encode("utf-8")))
    except ValueError as problem:
        raise TenantError(f"{target.shown} registered an unreadable TLS certificate: {clean(problem)}") from problem
    return AgentLink(target.host, target.port, context.edges.agents, pin)


async def _agent_version(context: Context, link: AgentLink, target: Target) -> str:
    version = context.request.agent_api_version or context.request.supported_version
    if version is None:
        version = await _negotiated(context, link, target)
    info(context.report, f"Using API version {version} for agent communication")
    return version


async def _negotiated(context: Context, link: AgentLink, target: Target) -> str:
    node = context.request.node
    try:
        offered = agent_v2.decode_version((await link.call("GET", "/version")).body)
    except Unreachable as problem:
        if problem.kind in {"tls", "certificate", "protocol"}:
            raise TenantError(f"{target.shown}: {link.explain(problem)}") from problem
        offered = ()
    except agent_v2.BadAnswer:
        offered = ()
    if not offered:
        warning(
            context.report,
            f"Could not detect supported API version of {target.shown}. Defaulting to {versions.CURRENT}",
        )
        return versions.CURRENT
    shown = [clean(v, 16) for v in offered[:32]]
    chosen = versions.negotiate(versions.AGENT_VERSIONS, offered)
    if chosen is None:
        text = f"Agent {node} has no compatible API version. Agent supports: {shown}, Tenant supports: "
        raise TenantError(f"{text}{list(versions.AGENT_VERSIONS)}")
    info(
        context.report,
        f"Negotiated API version {chosen} with agent {node} (agent: {shown}, tenant: {list(versions.AGENT_VERSIONS)})",
    )
    return chosen


async def _prove(
    context: Context, link: AgentLink, version: str, target: Target, registration: Registration
) -> ProvenNode:
    """Have the node quote its transport key, and its EK accepted. Raises TenantError."""
    node = context.request.node
    nonce = make_nonce(context.edges.choose)
    reply = await _identity_quote(context, link, agent_v2.identity_path(version, nonce), target)
    invalid = f"TPM Quote from {target.shown} is invalid for nonce: {nonce}"
    try:
        answer = agent_v2.decode_quote(reply.body)
    except agent_v2.BadAnswer as problem:
        raise TenantError(f"{invalid} ({clean(problem)})") from problem
    context.report.echo(reply.document)
    accept = context.rules.accept
    if unaccepted := unaccepted_algorithm(answer, accept):
        raise TenantError(f"TPM Quote from {target.shown} is using an unaccepted {unaccepted}")
    appraisal = appraise_identity(answer, registered_ak(registration), nonce, accept, context.edges.now())
    proven = prove(node, answer, appraisal)
    if isinstance(proven, str):
        if registration.registration_count > 1:
            error(
                context.report,
                f"{target.shown} has registered {registration.registration_count} times: the record may be of another "
                "TPM than the one that answers",
            )
        raise TenantError(f"{invalid} ({proven})")
    now = context.edges.now()
    if not await ek_accepted(context.rules.ek, node, target.shown, registration, context.report, now):
        raise TenantError(invalid)
    info(context.report, f"Quote from {target.shown} validated")
    return proven


async def _identity_quote(context: Context, link: AgentLink, path: str, target: Target) -> Reply:
    """Ask for the quote until there is an answer that is one."""
    tries, reason = max(1, context.rules.retry.tries), ""
    for attempt in range(1, tries + 1):
        try:
            reply = await link.call("GET", path)
        except Unreachable as problem:
            reason = link.explain(problem)
            if problem.kind in {"tls", "certificate", "too_large"}:
                raise TenantError(f"{target.shown}: {reason}") from problem
        else:
            if reply.http_status == OK and reply.document is not None:
                return reply
            reason = f"status {reply.http_status}"
            if reply.http_status not in NOT_READY:
                raise TenantError(f"{target.shown} gave no identity quote: {reply.code} {reply.status}")
        if attempt < tries:
            wait = context.delay(attempt)
            info(
                context.report,
                f"No answer from {target.shown} at try {attempt}/{tries} ({reason}), trying again in {wait} seconds...",
            )
            await context.edges.sleep(wait)
    raise TenantError(f"Tenant cannot establish connection to {target.shown} after {tries} tries: {reason}")


async def _deliver(link: AgentLink, version: str, proven: ProvenNode, delivery: Delivery, target: Target) -> None:
    """Hand U and the payload to the node that proved itself."""
    message = agent_v2.UKey(
        encrypted_share=keysplit.encrypt_key_share(proven.transport_key, delivery.u),
        auth_tag=bytes.fromhex(keysplit.bootstrap_auth_tag(delivery.key, proven.agent_id)),
        payload=delivery.payload,
    )
    try:
        reply = await link.call("POST", f"/v{version}/keys/ukey", agent_v2.encode_ukey(message))
    except Unreachable as problem:
        raise TenantError(f"Posting of Encrypted U to {target.shown} failed: {link.explain(problem)}") from problem
    if reply.http_status != OK:
        raise TenantError(f"Posting of Encrypted U to {target.shown} failed: {reply.code} {reply.status}")


async def _supervise(
    context: Context, target: Target, registration: Registration, policies: Policies, delivery: Delivery, version: str
) -> None:
    """Enrol the node with the verifier and wait until the verifier knows it."""
    node = context.request.node
    body = enrolment_body(context, target, registration, policies, delivery, version)
    reply = await context.verifier.call("POST", f"/agents/{node}", body)
    if CONFLICT in {reply.http_status, reply.code}:
        raise TenantError(
            f"{context.verifier_shown} responded indicating a conflict for agent {target.shown}: {reply.status} "
            'Run "delete" or "update" first.'
        )
    if reply.http_status != OK:
        shown = msgspec.json.encode(reply.document).decode() if reply.document is not None else reply.status
        raise TenantError(
            f"POST command response: {reply.http_status} Unexpected response from {context.verifier_shown}: {shown}"
        )
    tries = max(1, context.rules.retry.tries)
    for attempt in range(1, tries + 1):
        if await supervised(context) is not None:
            info(context.report, f"{target.supervised} added to {context.verifier_shown} after {attempt - 1} tries")
            return
        if attempt < tries:
            await context.pause(attempt)
    raise TenantError(f"{target.supervised} was not added to {context.verifier_shown} after {tries} tries")


def enrolment_body(
    context: Context, target: Target, registration: Registration, policies: Policies, delivery: Delivery, version: str
) -> bytes:
    """Encode what the verifier is told about a node."""
    accept = context.rules.accept
    return msgspec.json.encode(
        EnrolmentRequest(
            v=None if delivery.v is None else base64_text(delivery.v),
            cloudagent_ip=target.verifier_host,
            cloudagent_port=target.port,
            verifier_ip=context.verifier.host,
            verifier_port=context.verifier.port,
            tpm_policy=policies.tpm_policy,
            runtime_policy=base64_text(policies.runtime),
            runtime_policy_name=policies.runtime_name,
            runtime_policy_key=base64_text(policies.runtime_key),
            mb_policy=policies.boot,
            mb_policy_name=policies.boot_name,
            ima_sign_verification_keys=policies.ima_keys,
            metadata=delivery.metadata,
            revocation_key=delivery.revocation_key,
            accept_tpm_hash_algs=accept.hashes,
            accept_tpm_encryption_algs=accept.encryption,
            accept_tpm_signing_algs=accept.signing,
            ak_tpm=registration.attestation_key,
            mtls_cert=registration.tls_certificate,
            supported_version=version,
        )
    )


async def _confirmed(context: Context, link: AgentLink, version: str, delivery: Delivery, target: Target) -> int:
    """Wait until the node shows that it has the payload key; stop its supervision when it never does."""
    tries = max(1, context.rules.retry.tries)
    for attempt in range(1, tries + 1):
        challenge = make_nonce(context.edges.choose)
        try:
            reply = await link.call("GET", agent_v2.verify_path(version, challenge))
        except Unreachable as problem:
            error(context.report, f"{target.shown} cannot be asked for its key: {link.explain(problem)}")
            break
        received = _proof(reply)
        expected = keysplit.challenge_hmac(delivery.key, challenge)
        if hmac.compare_digest(expected.encode("ascii"), received.encode("utf-8", "replace")):
            info(context.report, f"Successful key derivation for {target.shown}")
            return 0
        progress = f"Key derivation not yet complete for {target.shown} at try {attempt}/{tries}"
        lengths = f"(expected length {len(expected)}, received length {len(received)})"
        if attempt < tries:
            wait = context.delay(attempt)
            info(context.report, f"{progress} {lengths} trying again in {wait} seconds... (Ctrl-C to stop)")
            await context.edges.sleep(wait)
        else:
            error(context.report, f"{progress} {lengths}")
    await _stop(context)
    return 1


def _proof(reply: Reply) -> str:
    try:
        return agent_v2.decode_hmac(reply.body) if reply.http_status == OK else ""
    except agent_v2.BadAnswer:
        return ""


async def _stop(context: Context) -> None:
    node = context.request.node
    reply = await context.verifier.call("PUT", f"/agents/{node}/stop", b"")
    if reply.http_status == OK:
        error(context.report, f"Agent {node} stopped on {context.verifier_shown}: it did not confirm the payload key")
    else:
        error(context.report, f"Agent {node} could not be stopped on {context.verifier_shown}: {reply.status}")
