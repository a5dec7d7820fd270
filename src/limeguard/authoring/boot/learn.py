"""A boot policy from the logs of machines that are believed: all that they ran, and what they have in common.

What was measured is united, so that each machine may go on to boot as it did. What protects (revocations, the level of
shim) is kept where all machines have it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from limeguard.appraisal.boot_facts import (
    COMMAND_PCR,
    FILES_PCR,
    authority,
    command_line,
    configured,
    entries,
    has_guid,
    load_options,
    sbat_level,
    vouching,
)
from limeguard.appraisal.boot_rules import ACTIONS, refusals
from limeguard.appraisal.boot_words import certificate_words, says_what
from limeguard.authoring.policy.collected import SourceError
from limeguard.crypto.hashes import SHA1, SHA256, HashAlgorithm
from limeguard.evidence.bootlog.event_types import EV_SEPARATOR
from limeguard.evidence.bootlog.log import BootLog
from limeguard.evidence.bootlog.replay import (
    BOOT_PCRS,
    SEPARATORS,
    DataProof,
    ProvenEvent,
    ReplayedBootLog,
    prove,
    replay_all,
)
from limeguard.evidence.tpm.quote import QuotedPcrs
from limeguard.evidence.tpm.structures import ClockInfo
from limeguard.policy.boot.checks import pattern
from limeguard.policy.boot.rules import (
    DEFAULT_PCRS,
    BootDocument,
    Certificate,
    Known,
    Section,
    Signatures,
    Variables,
    compile_boot_rules,
    literal,
)

CONFIGURATION: Final = frozenset({1, 3, 5, 6})
"""PCRs of settings, boot order and partitions: they differ from machine to machine and hold no code."""
STUB_PCRS: Final = (12, 13)
"""PCRs that systemd's boot loader and stub extend before the kernel runs, and nothing later does."""


@dataclass(frozen=True, slots=True)
class Named:
    """A log and what it is called in messages."""

    name: str
    log: BootLog


def claimed(log: BootLog, bank: HashAlgorithm) -> ReplayedBootLog:
    """Return the log as if a TPM had vouched for it. For logs that their operator believes, and for nothing else."""
    values = {pcr: bytes(bank.size) for pcr in BOOT_PCRS} | replay_all(log).get(bank, {})
    proven = prove(log, QuotedPcrs(bank, values, {bank: values}, ClockInfo(0, 0, 0, safe=False), 0))
    if not isinstance(proven, ReplayedBootLog):
        raise SourceError(proven.value)
    return proven


def banks_of(log: BootLog) -> tuple[HashAlgorithm, ...]:
    """Return the banks worth listing digests of: all that can be computed, SHA-1 only where there is no other."""
    computed = tuple(replay_all(log))
    return tuple(bank for bank in computed if bank is not SHA1) or computed


@dataclass
class _Learned:
    """What is gathered from one log."""

    sections: dict[str, dict[tuple[tuple[str, str], ...], Known]] = field(default_factory=dict)
    lines: dict[str, None] = field(default_factory=dict)
    authorities: dict[str, str] = field(default_factory=dict)
    databases: dict[str, dict[bytes, tuple[str, bool]]] = field(default_factory=dict)
    secure_boot: bool | None = None
    level: dict[str, int] = field(default_factory=dict)
    levels: list[Known] = field(default_factory=list)
    pcrs: set[int] = field(default_factory=set)

    def add(self, section: str, known: Known) -> None:
        self.sections.setdefault(section, {}).setdefault(tuple(known.digests()), known)


def learn(
    logs: Sequence[Named],
    *,
    allow: Iterable[int] = (),
    description: str = "",
    names: Mapping[str, str] | None = None,
) -> BootDocument:
    """Return a policy that accepts all these logs. Raises SourceError.

    `allow` are PCRs on which events that are not listed shall be passed over. Configuration that differs among the logs
    is passed over without being asked for, because it will differ on the next machine, too. `names` says what files of
    these digests are, better than a log can.
    """
    if not logs:
        raise SourceError("No log was given to learn from")
    learned = [_from_log(one.log, names or {}) for one in logs]
    pcrs = sorted({*DEFAULT_PCRS, *(pcr for one in learned for pcr in STUB_PCRS if pcr in one.pcrs)})
    passed = {*allow} | {pcr for pcr in CONFIGURATION if _differs(f"events.{pcr}", learned)}
    level = _common_level(learned)
    if not level:
        for one in learned:
            for known in one.levels:
                one.add("events.7", known)
    return BootDocument(
        limeguard_boot_policy=1,
        description=description,
        pcrs=pcrs,
        secure_boot=_secure_boot(learned),
        variables=Variables(**dict(_variables(learned))),
        authorities=[Certificate(digest, what) for digest, what in _united(one.authorities for one in learned).items()],
        sbat_level=level,
        command_lines=[re.escape(line) for line in _united(one.lines for one in learned)],
        events={
            str(pcr): listed for pcr in pcrs if pcr not in passed and (listed := _listed(f"events.{pcr}", learned))
        },
        unknown_events={str(pcr): "allow" for pcr in sorted(passed) if pcr in pcrs},
        must_occur=[name for name in _REQUIRED if all(_occurs(name, one) for one in learned)],
        firmware=_listed("firmware", learned),
        option_roms=_listed("option_roms", learned),
        boot_applications=_listed("boot_applications", learned),
        commands=_listed("commands", learned),
        boot_files=_listed("boot_files", learned),
        initrds=_listed("initrds", learned),
        mok=_listed("mok", learned),
    )


_REQUIRED: Final[tuple[Section, ...]] = ("boot_applications", "command_lines", "initrds")
_BY_PCR: Final = {0: "firmware", 2: "option_roms", 4: "boot_applications", 8: "commands", 14: "mok"}


def extended(base: BootDocument, learned: BootDocument) -> BootDocument:
    """Return a policy that is in use, with what a learned one lists beside it.

    Only lists grow. What an operator decided (Secure Boot, databases, levels, patterns, what is passed over) stays.
    """
    lines = [pattern(text) for text in base.command_lines]
    new_lines = [text for text in learned.command_lines if not any(one.matches(literal(text)) for one in lines)]
    events = {
        pcr: _and_more(base.events.get(pcr, []), listed)
        for pcr, listed in learned.events.items()
        if int(pcr) in base.pcrs and base.unknown_events.get(pcr) != "allow" and pcr not in base.values
    }
    certificates = {one.sha256.lower() for one in base.authorities}
    return msgspec.structs.replace(
        base,
        authorities=[*base.authorities, *(one for one in learned.authorities if one.sha256 not in certificates)],
        command_lines=[*base.command_lines, *new_lines],
        events={**base.events, **events},
        firmware=_and_more(base.firmware, learned.firmware),
        option_roms=_and_more(base.option_roms, learned.option_roms),
        boot_applications=_and_more(base.boot_applications, learned.boot_applications),
        commands=_and_more(base.commands, learned.commands),
        boot_files=_and_more(base.boot_files, learned.boot_files),
        initrds=_and_more(base.initrds, learned.initrds),
        mok=_and_more(base.mok, learned.mok),
    )


def _and_more(these: list[Known], those: list[Known]) -> list[Known]:
    known = {(bank, digest.lower()) for one in these for bank, digest in one.digests()}
    return [*these, *(one for one in those if not known.issuperset(one.digests()))]


def check_learned(document: BootDocument, logs: Sequence[Named]) -> Iterator[str]:
    """Yield what the policy still refuses of the logs that it was made from: what no policy should allow."""
    rules = compile_boot_rules(document)
    for one in logs:
        for bank in banks_of(one.log):
            for refusal in refusals(rules, claimed(one.log, bank)):
                yield f"{one.name}: {refusal.message}"


# --- one log --------------------------------------------------------------------------------------------------------


def _from_log(log: BootLog, names: Mapping[str, str]) -> _Learned:
    banks = banks_of(log)
    if not banks:
        raise SourceError("The log has digests of no bank that can be computed")
    replayed = [claimed(log, bank) for bank in banks]
    learned = _Learned(pcrs={event.event.pcr for event in replayed[0].events})
    learned.lines = dict.fromkeys(filter(None, map(_line, replayed[0].events)))
    for event in replayed[0].events:
        others = [found for one in replayed if (found := one.proven(event.event.event_num))]
        _learn(learned, event, _known(event, list(zip(banks, others, strict=True)), names), banks[0])
    return learned


def _known(event: ProvenEvent, digests: list[tuple[HashAlgorithm, ProvenEvent]], names: Mapping[str, str]) -> Known:
    named = {bank.name: one.digest.hex() for bank, one in digests}
    told = next((names[digest] for digest in named.values() if digest in names), "")
    return Known(
        what=told or says_what(event.event) or event.event.type_name,
        any_data=event.proof is DataProof.CONTRADICTED,
        **named,
    )


def _learn(learned: _Learned, event: ProvenEvent, known: Known, bank: HashAlgorithm) -> None:
    pcr = event.event.pcr
    if event.event.type == EV_SEPARATOR and event.digest == bank.digest(SEPARATORS[0]):
        return
    if event.digest in {bank.digest(text.encode()) for text in ACTIONS.get(pcr, ())}:
        return
    if pcr == 7 and _learn_keys(learned, event, known):
        return
    if _line(event) is not None:
        return
    if pcr == FILES_PCR and event.digest in {
        bank.digest(data) for line in learned.lines for data in load_options(line)
    }:
        return
    learned.add(_section(pcr, known.what), known)


def _section(pcr: int, what: str) -> str:
    if pcr in {FILES_PCR, 11, 13}:
        return "initrds" if re.search(r"initrd|initramfs", what) else "boot_files"
    return _BY_PCR.get(pcr, f"events.{pcr}")


def _line(event: ProvenEvent) -> str | None:
    """Return a kernel command line. The label that says so is a hint: good enough for a log that is believed."""
    line = command_line(event)
    data = event.event.data
    labelled = event.event.pcr != COMMAND_PCR or data.startswith(b"kernel_cmdline: ") or data[1:2] == b"\0"
    return line if labelled else None


def _learn_keys(learned: _Learned, event: ProvenEvent, known: Known) -> bool:
    found = configured(event)
    if found is not None and has_guid(*found):
        name, variable = found
        if name == "SecureBoot":
            learned.secure_boot = variable.content == b"\x01"
            return True
        held = entries(variable.content)
        if held is not None:
            learned.databases[name] = {
                one.digest: (certificate_words(one.certificate) if one.certificate else "", one.is_image)
                for one in held
            }
            return True
    vouched = authority(event)
    if vouched is None:
        return False
    level = sbat_level(*vouched)
    if level:
        learned.level = level
        learned.levels.append(known)
        return True
    for der in vouching(vouched[1]):
        if subject := certificate_words(der):
            learned.authorities[SHA256.digest(der).hex()] = subject
            return True
    return False


# --- many logs ------------------------------------------------------------------------------------------------------


def _united(each: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the union, in the order of first sight."""
    united: dict[str, Any] = {}
    for one in each:
        for key, value in one.items():
            united.setdefault(key, value)
    return united


def _listed(section: str, learned: Sequence[_Learned]) -> list[Known]:
    found: dict[tuple[tuple[str, str], ...], Known] = {}
    for one in learned:
        for key, known in one.sections.get(section, {}).items():
            found.setdefault(key, known)
    return list(found.values())


def _differs(section: str, learned: Sequence[_Learned]) -> bool:
    return len({frozenset(one.sections.get(section, {})) for one in learned}) > 1


def _occurs(name: str, one: _Learned) -> bool:
    return bool(one.lines if name == "command_lines" else one.sections.get(name))


def _secure_boot(learned: Sequence[_Learned]) -> Literal["on", "off", "any"]:
    states = {one.secure_boot for one in learned}
    if len(states) == 1 and None not in states:
        return "on" if True in states else "off"
    return "any"


def _common_level(learned: Sequence[_Learned]) -> dict[str, int]:
    names = set.intersection(*(set(one.level) for one in learned))
    return {name: min(one.level[name] for one in learned) for name in learned[0].level if name in names}


def _variables(learned: Sequence[_Learned]) -> Iterator[tuple[str, Signatures]]:
    for name in ("PK", "KEK", "db", "dbx"):
        held = [one.databases[name] for one in learned if name in one.databases]
        if len(held) != len(learned):
            continue
        common = set.intersection(*map(set, held))
        united = {digest: what for one in held for digest, what in one.items()}
        if name == "dbx":
            yield name, _signatures("at least", {digest: united[digest] for digest in united if digest in common})
        else:
            same = name == "PK" and len(common) == len(united)
            yield name, _signatures("exactly" if same else "at most", united)


def _signatures(match: Any, held: dict[bytes, tuple[str, bool]]) -> Signatures:
    certificates = [Certificate(digest.hex(), what) for digest, (what, image) in held.items() if not image]
    return Signatures(match, certificates, [digest.hex() for digest, (_, image) in held.items() if image])
