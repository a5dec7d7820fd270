"""Migrations of the verifier's tables."""

from limeguard.store.migration_env import run

run()
