"""The whole log in the shape that `tpm2_eventlog` prints and that Keylime's policies see.

Every field is as said by the log, proven or not.
"""

from typing import Any

from limeguard.crypto.hashes import SHA1, hash_by_tpm_id
from limeguard.evidence.bootlog.decode import decode
from limeguard.evidence.bootlog.log import SPEC_ID_SIGNATURE, BootEvent, BootLog, SpecId
from limeguard.evidence.bootlog.replay import boot_aggregates, replay_all

VERSION = 2


def enriched_event(event: BootEvent, log: BootLog) -> dict[str, Any]:
    """Return one member of `events`."""
    if event.event_num == 0 and log.spec_id is not None:
        return _spec_id_event(event, log.spec_id)
    digests = [{"AlgorithmId": bank.name, "Digest": digest.hex()} for bank, digest in event.digests.items()]
    digests += [{"AlgorithmId": f"{number:#06x}", "Digest": digest.hex()} for number, digest in event.other_digests]
    shown = {
        "EventNum": event.event_num,
        "PCRIndex": event.pcr,
        "EventType": event.type_name,
        "DigestCount": len(digests),
        "Digests": digests,
        "EventSize": len(event.data),
    }
    if event.data:
        shown["Event"] = decode(event)
    return shown


def enriched_events(log: BootLog) -> list[dict[str, Any]]:
    """Return `events` alone, for who has replayed the log already."""
    return [enriched_event(event, log) for event in log.events]


def enriched(log: BootLog) -> dict[str, Any]:
    """Return `version`, `events`, `pcrs` and `boot_aggregates`. PCR indices are text, values and digests are hex."""
    banks = replay_all(log)
    return {
        "version": VERSION,
        "events": enriched_events(log),
        "pcrs": {
            bank.name: {str(pcr): value.hex() for pcr, value in sorted(pcrs.items())} for bank, pcrs in banks.items()
        },
        "boot_aggregates": {
            bank.name: [value.hex() for value in boot_aggregates(pcrs, bank)] for bank, pcrs in banks.items()
        },
    }


def _spec_id_event(event: BootEvent, spec_id: SpecId) -> dict[str, Any]:
    said: dict[str, Any] = {
        "Signature": SPEC_ID_SIGNATURE.decode().rstrip("\0"),
        "platformClass": spec_id.platform_class,
        "specVersionMinor": spec_id.version_minor,
        "specVersionMajor": spec_id.version_major,
        "specErrata": spec_id.errata,
        "uintnSize": spec_id.uintn_size,
        "numberOfAlgorithms": len(spec_id.algorithms),
        "Algorithms": [
            {f"Algorithm[{index}]": None, "algorithmId": _algorithm_name(number), "digestSize": size}
            for index, (number, size) in enumerate(spec_id.algorithms)
        ],
        "vendorInfoSize": len(spec_id.vendor_info),
    }
    if spec_id.vendor_info:
        said["vendorInfo"] = spec_id.vendor_info.hex()
    return {
        "EventNum": event.event_num,
        "PCRIndex": event.pcr,
        "EventType": event.type_name,
        "Digest": event.digests[SHA1].hex(),
        "EventSize": len(event.data),
        "SpecID": [said],
    }


def _algorithm_name(number: int) -> str:
    known = hash_by_tpm_id(number)
    return known.name if known else f"{number:#06x}"
