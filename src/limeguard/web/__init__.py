"""A small HTTP kit that knows nothing of attestation: routes with actions, callers, bounds, TLS and a pooled client."""
