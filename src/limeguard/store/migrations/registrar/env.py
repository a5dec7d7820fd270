"""Migrations of the registrar's tables."""

from limeguard.store.migration_env import run

run()
