"""What the settings mean for the parts of a verifier: rules, limits of sessions, who may sign policies."""

from pathlib import Path

from limeguard.policy.dsse import load_signer
from limeguard.policy.severity import parse_severity
from limeguard.verifier.policies import Signers
from limeguard.verifier.push.sessions import SessionRules
from limeguard.verifier.settings import VerifierSettings
from limeguard.verifier.supervision import Rules, default_trust_lifetime
from limeguard.verifier.writer import BATCH_SECONDS, MAX_GATHER_SECONDS


def make_rules(settings: VerifierSettings) -> Rules:
    """Return the rules of supervision that the settings ask for."""
    lifetime = settings.trust_lifetime or default_trust_lifetime(settings.quote_interval)
    return Rules(
        quote_interval=settings.quote_interval,
        retry_interval=settings.retry_interval,
        exponential_backoff=settings.exponential_backoff,
        max_retries=settings.max_retries,
        trust_lifetime=lifetime,
        severity=parse_severity(settings.severity_labels, settings.severity_policy),
        continue_after_failure=settings.continue_after_failure,
        auto_recover=settings.auto_recover_attestation_failures,
    )


def make_session_rules(settings: VerifierSettings, *, shared: bool) -> SessionRules:
    """Return how sessions are given out, `shared` with other workers or not."""
    return SessionRules(
        challenge_lifetime=settings.nonce_lifetime,
        token_lifetime=settings.session_lifetime,
        extend=settings.extend_token_on_attestation,
        per_address=settings.session_create_rate_limit_per_ip,
        address_window=settings.session_create_rate_limit_window_ip,
        per_agent=settings.session_create_rate_limit_per_agent,
        agent_window=settings.session_create_rate_limit_window_agent,
        shared=shared,
    )


def gather_seconds(trust_lifetime: float) -> float:
    """Return how long results of rounds may wait: what is stored of trust lasts half of its life at least."""
    return min(max(trust_lifetime / 2, BATCH_SECONDS), MAX_GATHER_SECONDS)


def make_signers(settings: VerifierSettings) -> Signers:
    """Return whose signatures of policies count. Raises PolicyError for a file that holds no such key."""
    pinned = tuple(load_signer(Path(path).read_bytes()) for path in settings.policy_signing_keys)
    return Signers(settings.require_allow_list_signatures or bool(pinned), pinned)
