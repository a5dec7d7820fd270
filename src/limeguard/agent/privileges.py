"""Giving up root: the agent opens what only root may open, then works as its own user for good."""

import grp
import os
import pwd
from dataclasses import dataclass

from limeguard.telemetry import clean, get_logger

log = get_logger("keylime_agent")


class NoSuchAccount(Exception):  # noqa: N818 - a fact about the system
    """The user or group of `run_as` does not exist or is not written as USER:GROUP."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom to become. `groups` are all groups of the user, among them the one that may use the TPM."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_account(run_as: str) -> Account | None:
    """Return the account of `run_as` (USER:GROUP) when there is something to give up, else None with a warning.

    Raises NoSuchAccount.
    """
    if os.geteuid() != 0:
        log.warning("Not started as root: run_as is ignored")
        return None
    if not run_as:
        log.warning("run_as is empty: the agent goes on running as root")
        return None
    user, colon, group = run_as.partition(":")
    if not colon or not user or not group:
        raise NoSuchAccount(f"run_as = {clean(run_as)} must be written USER:GROUP.")
    try:
        uid = pwd.getpwnam(user).pw_uid
        gid = grp.getgrnam(group).gr_gid
    except KeyError as problem:
        raise NoSuchAccount(
            f"run_as = {clean(run_as)}: there is no such user or group; create it or set run_as to existing ones."
        ) from problem
    return Account(run_as, uid, gid, tuple(os.getgrouplist(user, gid)))


def become(account: Account) -> None:
    """Turn this process into the account's, for good. Raises OSError; the process must not go on then."""
    log.info("Running the service as %s...", account.name)
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if account.uid != 0 and 0 in os.getresuid():
        raise OSError("root could not be given up")
