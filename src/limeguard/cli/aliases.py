"""The command names that Keylime's users type, as entry points that run the same programs."""

import sys
from typing import NoReturn


def verifier() -> NoReturn:
    """Run `keylime_verifier`, which takes no options."""
    from limeguard.cli.verifier import main

    sys.exit(main(sys.argv[1:]))


def registrar() -> NoReturn:
    """Run `keylime_registrar`, which takes no options."""
    from limeguard.cli.registrar import main

    sys.exit(main(sys.argv[1:]))


def tenant() -> NoReturn:
    """Run `keylime_tenant` with its output layout."""
    from limeguard.cli.tenant import keylime_tenant

    sys.exit(keylime_tenant(sys.argv[1:]))


def agent() -> NoReturn:
    """Run `keylime_agent`."""
    from limeguard.cli.agent import main

    sys.exit(main(sys.argv[1:]))


def push_agent() -> NoReturn:
    """Run `keylime_push_model_agent`."""
    from limeguard.cli.push_agent import main

    sys.exit(main(sys.argv[1:]))


def ca() -> NoReturn:
    """Run `keylime_ca`."""
    from limeguard.cli.ca import main

    sys.exit(main(sys.argv[1:]))


def userdata_encrypt() -> NoReturn:
    """Run `keylime_userdata_encrypt`."""
    from limeguard.cli.userdata import main

    sys.exit(main(sys.argv[1:]))


def policy() -> NoReturn:
    """Run `keylime-policy`."""
    from limeguard.cli.policy import keylime_policy

    sys.exit(keylime_policy(sys.argv[1:]))


def convert_policy() -> NoReturn:
    """Run `keylime_convert_runtime_policy`."""
    from limeguard.cli.older_policy import convert_runtime_policy

    sys.exit(convert_runtime_policy(sys.argv[1:]))


def create_policy() -> NoReturn:
    """Run `keylime_create_policy`."""
    from limeguard.cli.create_policy import create_policy as run

    sys.exit(run(sys.argv[1:]))


def create_runtime_policy() -> NoReturn:
    """Run `create_runtime_policy.sh`."""
    from limeguard.cli.create_policy import create_runtime_policy as run

    sys.exit(run(sys.argv[1:]))


def ima_emulator() -> NoReturn:
    """Run `keylime_ima_emulator`."""
    from limeguard.cli.ima_emulator import main

    sys.exit(main(sys.argv[1:]))


def sign_policy() -> NoReturn:
    """Run `keylime_sign_runtime_policy`."""
    from limeguard.cli.older_policy import sign_runtime_policy

    sys.exit(sign_runtime_policy(sys.argv[1:]))


def mb_refstate() -> NoReturn:
    """Run `create_mb_refstate`."""
    from limeguard.cli.mb_refstate import create_mb_refstate

    sys.exit(create_mb_refstate(sys.argv[1:]))
