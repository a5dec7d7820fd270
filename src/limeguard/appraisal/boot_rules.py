"""Proven events against rules of our own: what is not allowed is refused, in a sentence that names the event.

An event is allowed by its digest in the quoted bank, or by what its data says where that digest covers the data. Type
and number of an event are covered by nothing, so an event never becomes allowed by its type.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from limeguard.appraisal.boot_facts import (
    COMMAND_PCR,
    FILES_PCR,
    KEYS_PCR,
    STUB_PCR,
    authority,
    command_line,
    configured,
    entries,
    has_guid,
    load_options,
    sbat_level,
    secure_boot_event,
    vouching,
)
from limeguard.appraisal.boot_words import certificate_words, named, words
from limeguard.appraisal.findings import ContextValue
from limeguard.crypto.hashes import SHA256
from limeguard.evidence.bootlog.event_types import EV_EFI_VARIABLE_DRIVER_CONFIG
from limeguard.evidence.bootlog.layouts import split_variable
from limeguard.evidence.bootlog.replay import SEPARATORS, DataProof, ProvenEvent, ReplayedBootLog
from limeguard.policy.boot.checks import PASSED
from limeguard.policy.boot.rules import SECTION_PCRS, BootRules, Contents

LINE_PCRS: Final = frozenset({COMMAND_PCR, STUB_PCR})
FIRMWARE_PCRS: Final = frozenset(range(8))
"""The PCRs that the firmware closes with a separator before it starts what it did not bring."""
ACTIONS: Final = {
    4: ("Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"),
    5: ("Exit Boot Services Invocation", "Exit Boot Services Returned with Success"),
}
"""What firmware reports of its own doing, and what says nothing about the software that runs."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the rules refuse, in a sentence that names the event, or the PCR where an event is missing."""

    message: str
    event_num: int | None = None
    pcr: int | None = None
    event_type: str = ""

    def context(self) -> dict[str, ContextValue]:
        """Return what a finding keeps of it."""
        kept: dict[str, ContextValue] = {"message": self.message}
        if self.pcr is not None:
            kept["pcr"] = self.pcr
        if self.event_num is not None:
            kept |= {"event": self.event_num, "type": self.event_type}
        return kept


def refusals(rules: BootRules, replayed: ReplayedBootLog) -> Iterator[Refusal]:
    """Yield what the rules do not allow, in the order of the log, then what is missing from it."""
    bank = replayed.bank.name
    if rules.listed and bank not in rules.banks():
        listed = ", ".join(sorted(rules.banks()))
        yield Refusal(f"the policy lists no {bank} digests, only {listed}: let the agent quote one of these banks")
        return
    yield from _Judge(rules, replayed).refusals()


def known_digests(rules: BootRules, replayed: ReplayedBootLog, pcr: int) -> dict[bytes, str]:
    """Return the digests that the rules know for a PCR, and what each is."""
    bank = replayed.bank
    known = {bank.digest(SEPARATORS[0]): "a separator"} if pcr in FIRMWARE_PCRS else {}
    known |= {bank.digest(text.encode()): f"'{text}'" for text in ACTIONS.get(pcr, ())}
    if pcr == KEYS_PCR and rules.document.secure_boot != "any":
        known |= {
            bank.digest(secure_boot_event(on=on)): f"Secure Boot is {'on' if on else 'off'}" for on in (True, False)
        }
    for line in rules.literal_lines:
        measured = {
            COMMAND_PCR: [line.encode("utf-8", "surrogateescape")],
            STUB_PCR: load_options(line),
            FILES_PCR: load_options(line),
        }
        known |= {bank.digest(data): f"the command line {words(line)!r}" for data in measured.get(pcr, ())}
    return known | dict(rules.listed.get((bank.name, pcr), {}))


def unsaid(rules: BootRules, replayed: ReplayedBootLog, pcr: int) -> list[str]:
    """Return the variables that the rules ask for and that no event of the log even claims to be about."""
    if pcr != KEYS_PCR:
        return []
    wanted = {*rules.variables, *(["SecureBoot"] if rules.document.secure_boot != "any" else [])}
    claimed = {
        variable.bare_name.decode("utf-16-le", "replace")
        for event in replayed.log.events
        if event.type == EV_EFI_VARIABLE_DRIVER_CONFIG and (variable := split_variable(event.data))
    }
    return sorted(wanted - claimed)


class _Judge:
    """One log under one set of rules."""

    def __init__(self, rules: BootRules, replayed: ReplayedBootLog) -> None:
        self.rules = rules
        self.replayed = replayed
        self.bank = replayed.bank
        self.secure_boot: bool | None = None
        self.variables: set[str] = set()
        self.level_seen = False
        self.occurred: set[str] = set()
        self.separators: set[int] = set()
        self.separator = self.bank.digest(SEPARATORS[0])
        self.actions = {(pcr, self.bank.digest(text.encode())) for pcr, texts in ACTIONS.items() for text in texts}
        self.lines = dict(self.allowed_lines())
        allowed = {*self.lines.values(), *rules.literal_lines}
        self.options = {self.bank.digest(data) for line in allowed for data in load_options(line)}

    def refusals(self) -> Iterator[Refusal]:
        """Look at every event, then at what has to be there."""
        for event in self.replayed.events:
            pcr = event.event.pcr
            if pcr in self.rules.pcrs and pcr not in self.rules.values:
                reason = self.refused(event)
                if reason:
                    said = event.event
                    yield Refusal(f"{named(said)} {reason}", said.event_num, pcr, said.type_name)
        yield from self.wrong_values()
        yield from self.missing()

    def allowed_lines(self) -> Iterator[tuple[int, str]]:
        """Yield the command lines that are proven and allowed, with the number of the event."""
        for event in self.replayed.events:
            if event.event.pcr in LINE_PCRS and event.event.pcr in self.rules.pcrs:
                line = command_line(event)
                if line is not None and self.matches_line(line):
                    yield event.event.event_num, line

    def refused(self, event: ProvenEvent) -> str:
        """Return why an event is not allowed, empty if it is."""
        pcr, digest = event.event.pcr, event.digest
        if event.proof is DataProof.CONTRADICTED and digest not in self.rules.any_data:
            return "does not say what was measured: its digest is of other data, so the log was changed"
        if pcr == KEYS_PCR and (answer := self.about_keys(event)) is not None:
            return answer
        if pcr in FIRMWARE_PCRS and digest == self.separator:
            # Some firmware has a version of four zero bytes, whose digest is that of a separator: it is listed then.
            if pcr not in self.separators or self.listed(event):
                self.separators.add(pcr)
                return PASSED
            return "is a second separator on its PCR, where firmware makes one"
        if (
            self.listed(event)
            or (pcr, digest) in self.actions
            or self.line_allowed(event)
            or pcr in self.rules.passed_over
        ):
            return PASSED
        return self.unlisted(event)

    def listed(self, event: ProvenEvent) -> bool:
        sections = self.rules.sections.get((self.bank.name, event.event.pcr, event.digest))
        self.occurred.update(sections or ())
        return sections is not None

    def unlisted(self, event: ProvenEvent) -> str:
        pcr = event.event.pcr
        if pcr in FIRMWARE_PCRS and event.digest == self.bank.digest(SEPARATORS[1]):
            return "is a separator by which the firmware reports an error"
        if pcr == 4 and self.rules.document.signed_applications:
            self.occurred.add("boot_applications")
            return PASSED  # under Secure Boot the firmware has checked it; missing() asks whether that was on
        line = command_line(event)
        if line is not None:
            return f"is a text that neither command_lines nor commands allow: {words(line, 1_000)!r}"
        members = [name for name, pcrs in SECTION_PCRS.items() if pcr in pcrs] or [f"events.{pcr}"]
        return f"has the {self.bank.name} digest {event.digest.hex()}, which {' or '.join(members)} does not list"

    # --- command lines ---

    def line_allowed(self, event: ProvenEvent) -> bool:
        pcr = event.event.pcr
        if event.event.event_num in self.lines or (pcr == FILES_PCR and event.digest in self.options):
            self.occurred.add("command_lines")
            return True
        line = command_line(event) if pcr == COMMAND_PCR and self.rules.commands else None
        if line is not None and any(one.matches(line) for one in self.rules.commands):
            self.occurred.add("commands")
            return True
        return False

    def matches_line(self, line: str) -> bool:
        return line in self.rules.literal_lines or any(one.matches(line) for one in self.rules.command_lines)

    # --- keys ---

    def about_keys(self, event: ProvenEvent) -> str | None:
        """Return why a variable of PCR 7 is not allowed, empty if it is, None if no rule is about it."""
        found = configured(event)
        if found is not None and has_guid(*found):
            name, variable = found
            if name == "SecureBoot":
                return self.about_secure_boot(on=variable.content == b"\x01")
            if name in self.rules.variables:
                self.variables.add(name)
                return self.about_contents(name, variable.content, self.rules.variables[name])
        vouched = authority(event)
        if vouched is None:
            return None
        name, variable = vouched
        level = sbat_level(name, variable)
        if level is not None and self.rules.document.sbat_level:
            return self.about_level(level)
        if any(SHA256.digest(one) in self.rules.authorities for one in vouching(variable)):
            return PASSED
        if self.listed(event):
            return PASSED
        subject = next(filter(None, map(certificate_words, vouching(variable))), "")
        shown = f"the certificate of {subject}" if subject else "something"
        ids = f"sha256 {SHA256.digest(next(vouching(variable))).hex()}" if subject else self.shown_digest(event)
        return f"says that {shown} vouched for an image ({ids}), which authorities does not list"

    def shown_digest(self, event: ProvenEvent) -> str:
        return f"digest of the event {event.digest.hex()}"

    def about_secure_boot(self, *, on: bool) -> str:
        wanted = self.rules.document.secure_boot
        if self.secure_boot is not None and self.secure_boot is not on:
            return "contradicts an earlier event about Secure Boot"
        self.secure_boot = on
        if wanted == "any" or (wanted == "on") is on:
            return PASSED
        return f"says that Secure Boot is {'on' if on else 'off'}; the policy requires it to be {wanted}"

    def about_contents(self, name: str, content: bytes, wanted: Contents) -> str:
        found = entries(content)
        if found is None:
            return "holds signature lists that cannot be read to their end"
        digests = {one.digest for one in found}
        lacking = wanted.entries - digests if wanted.match != "at most" else frozenset()
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            return f"lacks the entry {min(lacking).hex()}{more} that variables.{name} requires"
        for one in found if wanted.match != "at least" else ():
            if one.digest not in wanted.entries:
                subject = certificate_words(one.certificate) if one.certificate else ""
                what = f"the certificate of {subject} (sha256 {one.digest.hex()})" if subject else one.digest.hex()
                return f"holds {what}, which variables.{name} does not list"
        return PASSED

    def about_level(self, level: dict[str, int]) -> str:
        self.level_seen = True
        for name, least in sorted(self.rules.document.sbat_level.items()):
            if level.get(name, 0) < least:
                has = level.get(name, "none")
                return f"revokes less than sbat_level requires: {name} is {has}, {least} is the least"
        return PASSED

    # --- what has to be there ---

    def wrong_values(self) -> Iterator[Refusal]:
        for pcr, allowed in sorted(self.rules.values.items()):
            value = self.replayed.pcrs.get(pcr, bytes(self.bank.size))
            if pcr in self.replayed.confirmed and value not in allowed.get(self.bank.name, ()):
                yield Refusal(
                    f"PCR {pcr} holds the {self.bank.name} value {value.hex()}, which values does not list", pcr=pcr
                )

    def missing(self) -> Iterator[Refusal]:
        """Yield what no event said. PCRs that the log does not account for have findings of their own."""
        confirmed = self.replayed.confirmed & self.rules.pcrs - self.rules.values.keys()
        for pcr in sorted(FIRMWARE_PCRS & confirmed - self.separators):
            yield Refusal(f"no separator was measured on PCR {pcr}: the firmware never closed it", pcr=pcr)
        if KEYS_PCR in confirmed:
            yield from self.missing_keys()
        for name in self.rules.document.must_occur:
            if name not in self.occurred and confirmed >= set(SECTION_PCRS.get(name, ())) & self.rules.pcrs:
                yield Refusal(f"no event is one of {name}, of which must_occur requires one")

    def missing_keys(self) -> Iterator[Refusal]:
        if self.secure_boot is None and self.rules.document.secure_boot != "any":
            yield Refusal("no event on PCR 7 says whether Secure Boot is on", pcr=KEYS_PCR)
        for name in sorted(self.rules.variables.keys() - self.variables):
            yield Refusal(f"no event on PCR 7 says what {name} holds", pcr=KEYS_PCR)
        if self.rules.document.sbat_level and not self.level_seen:
            yield Refusal("no event on PCR 7 says shim's revocation level (SbatLevel)", pcr=KEYS_PCR)
