"""The verifier killed with -9 in whatever state its nodes are: it goes on, and nothing is green that was not proven."""

import json
import os
import random
import time
import uuid
from typing import Any

import pytest
from tests.fakes.site import Site

from limeguard.cli.sandbox import Node

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-kill")]

KILLS = int(os.environ.get("LIMEGUARD_KILLS", "8"))
LIFETIME = 10.0
POLICY = json.dumps({"23": ["00" * 32]})


def started(site: Site) -> Node:
    node = site.add_node(str(uuid.uuid4()))
    site.trust_tpm_maker()
    node.start()
    return node


def enrol(site: Site, node: Node, *more: str) -> None:
    site.keylime_tenant("-c", "add", "-u", node.id, "--tpm_policy", POLICY, *more)


def restarted(site: Site) -> None:
    assert site.verifier is not None
    site.verifier.kill()
    site.start_verifier()


def view_of(site: Site, node: Node) -> dict[str, Any]:
    view = site.node_view(node.id)
    assert view is not None
    return view


def proven(view: dict[str, Any]) -> bool:
    """Whether a green node has shown all it had to, within the time for which that counts."""
    checks = view["checks"]
    recent = view["last_trusted_at"] is not None and time.time() - view["last_trusted_at"] < LIFETIME + 1
    return recent and bool(checks["required"]) and set(checks["required"]) <= set(checks["ran"])


def test_a_verifier_killed_again_and_again_forgets_nothing_and_invents_nothing(site: Site) -> None:
    # trust: fail-closed, green-is-recent
    good, bad, stopped, silent = (started(site) for _ in range(4))
    for node in (good, bad, stopped, silent):
        enrol(site, node)
    site.reaches(silent, "trusted", rounds=1)
    bad.tpm.extend(23, bytes(32))
    site.reaches(bad, "distrusted")
    site.ask(site.ports["verifier"], f"/v2.6/agents/{stopped.id}/stop", "PUT")
    silent.stop()
    moments = random.Random(11)
    rounds = 0
    for _ in range(KILLS):
        time.sleep(moments.uniform(0.0, 1.2))
        restarted(site)
        view = view_of(site, good)
        assert view["condition"] != "trusted" or proven(view), view
        assert view["attestation_count"] >= rounds, "a committed round was forgotten"
        assert view_of(site, bad)["condition"] == "distrusted"
        assert [one["id"] for one in view_of(site, bad)["findings"]] == ["pcr.not-allowed"]
        assert view_of(site, stopped)["condition"] == "paused"
        lost = view_of(site, silent)
        assert lost["condition"] != "trusted" or proven(lost), lost
        rounds = site.reaches(good, "trusted", rounds=rounds + 1)["attestation_count"]
    silent.start()
    site.keylime_tenant("-c", "reactivate", "-u", silent.id)
    site.reaches(silent, "trusted")


def test_a_verifier_killed_between_enrolment_and_the_first_quote_asks_for_it(site: Site) -> None:
    # trust: enrolment-order
    node = started(site)
    enrol(site, node)
    restarted(site)
    site.reaches(node, "trusted", rounds=2)


def test_a_deletion_that_was_answered_is_not_undone_by_a_kill(site: Site) -> None:
    node = started(site)
    enrol(site, node)
    site.reaches(node, "trusted", rounds=1)
    status, _ = site.ask(site.ports["verifier"], f"/v2.6/agents/{node.id}", "DELETE")
    assert status in {200, 202}
    restarted(site)
    end = time.monotonic() + 10
    while (view := site.node_view(node.id)) is not None:
        assert view["condition"] != "trusted"
        assert time.monotonic() < end
        time.sleep(0.1)
