"""Our own boot policies: what a node may boot, said by what it is and not by how one log looked.

A document lists what may be measured, PCR by PCR; what it does not list is refused. It is compiled once to sets of
digests and patterns. Only what a digest in the quoted bank vouches for is ever held against it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from limeguard.crypto import hashes
from limeguard.evidence.bootlog.replay import BOOT_PCRS
from limeguard.policy.boot.checks import Pattern, pattern
from limeguard.policy.errors import PolicyError

MARK: Final = "limeguard_boot_policy"
VERSION: Final = 1
DEFAULT_PCRS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
MAX_LISTED: Final = 50_000
"""Digests, keys and patterns of one policy."""

Digest = str | UnsetType
Section = Literal[
    "firmware",
    "option_roms",
    "boot_applications",
    "commands",
    "command_lines",
    "boot_files",
    "initrds",
    "mok",
]
SECTION_PCRS: Final[Mapping[str, tuple[int, ...]]] = {
    "firmware": (0,),
    "option_roms": (2,),
    "boot_applications": (4,),
    "commands": (8,),
    "boot_files": (9, 11, 13),
    "initrds": (9, 11),
    "mok": (14,),
}
"""The PCRs on which an event may be one of a section."""


class Known(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Something that may be measured: what it is, for people, and the digest that is measured, bank by bank.

    `any_data` lets the data beside the digest be anything: some firmware logs other data than it hashes.
    """

    what: str = ""
    sha1: Digest = UNSET
    sha256: Digest = UNSET
    sha384: Digest = UNSET
    sha512: Digest = UNSET
    any_data: bool = False

    def digests(self) -> Iterator[tuple[str, str]]:
        """Yield bank and digest, as written."""
        for name in ("sha1", "sha256", "sha384", "sha512"):
            value = getattr(self, name)
            if value is not UNSET:
                yield name, value


class Certificate(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A certificate, by the SHA-256 digest of its DER form, and what it is, for people."""

    sha256: str
    what: str = ""


class Signatures(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """What a signature database of the firmware holds: certificates, and images by their SHA-256 Authenticode digest.

    `match` says how the database is compared with the two lists: it holds `exactly` these, these `at most`, or these
    `at least`. Entries of other kinds are named by the digest of their data, among the certificates.
    """

    match: Literal["exactly", "at most", "at least"]
    certificates: list[Certificate] = []
    images: list[str] = []


class Variables(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """The signature databases that are compared. One that is not named here must be listed under `events`."""

    PK: Signatures | UnsetType = UNSET
    KEK: Signatures | UnsetType = UNSET
    db: Signatures | UnsetType = UNSET
    dbx: Signatures | UnsetType = UNSET

    def named(self) -> Iterator[tuple[str, Signatures]]:
        """Yield name and content of each that is named."""
        for name in ("PK", "KEK", "db", "dbx"):
            value = getattr(self, name)
            if value is not UNSET:
                yield name, value


class BootDocument(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A boot policy.

    `pcrs` are the PCRs that the boot log has to account for; every event on them has to be allowed by a member below.
    `secure_boot`: whether Secure Boot must be on, off, or may be either.
    `variables`: what the firmware's signature databases hold.
    `authorities`: certificates that may have vouched for an image (firmware, shim and machine owner keys).
    `sbat_level`: the least revocation level of shim, such as `{"sbat": 2023012900, "shim": 2}`.
    `firmware`: version and volumes of the firmware (PCR 0). `option_roms`: drivers of devices (PCR 2).
    `boot_applications`: boot loaders, unified kernel images and kernels by Authenticode digest (PCR 4).
    `signed_applications`: accept any image while Secure Boot is on and every authority is listed.
    `commands`: GRUB commands by digest, `command_patterns` by pattern (PCR 8).
    `command_lines`: patterns, one of which the whole of each kernel command line matches (PCRs 8, 9, 12).
    `boot_files`: files that boot loaders read (PCRs 9, 11, 13). `initrds`: initial RAM disks (PCRs 9, 11).
    `mok`: machine owner keys as shim measures them (PCR 14).
    `events`: whatever else may be measured, by PCR number. `values`: PCRs that are compared as a whole, by PCR number.
    `unknown_events`: PCR numbers on which events that nothing allows are passed over; elsewhere they are refused.
    `must_occur`: members of which at least one event must have occurred.
    """

    limeguard_boot_policy: Literal[1]
    description: str = ""
    pcrs: list[int] = msgspec.field(default_factory=lambda: list(DEFAULT_PCRS))
    secure_boot: Literal["on", "off", "any"] = "on"
    variables: Variables = Variables()
    authorities: list[Certificate] = []
    sbat_level: dict[str, int] = {}
    firmware: list[Known] = []
    option_roms: list[Known] = []
    boot_applications: list[Known] = []
    signed_applications: bool = False
    commands: list[Known] = []
    command_patterns: list[str] = []
    command_lines: list[str] = []
    boot_files: list[Known] = []
    initrds: list[Known] = []
    mok: list[Known] = []
    events: dict[str, list[Known]] = {}
    values: dict[str, list[Known]] = {}
    unknown_events: dict[str, Literal["allow", "refuse"]] = {}
    must_occur: list[Section] = []


@dataclass(frozen=True, slots=True)
class Contents:
    """A signature database: how it is compared, and the digests of certificates and images in it."""

    match: str
    entries: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class BootRules:
    """A compiled policy. `listed` maps bank and PCR to what each digest is; names are for sentences only.

    `literal_lines` are the command lines that are written out; `command_lines` are the patterns that match several.
    `sections` maps bank, PCR and digest to the members that list it. `any_data` are digests whose data is not seen.
    """

    document: BootDocument
    pcrs: frozenset[int]
    listed: Mapping[tuple[str, int], Mapping[bytes, str]]
    sections: Mapping[tuple[str, int, bytes], frozenset[str]]
    any_data: frozenset[bytes]
    variables: Mapping[str, Contents]
    authorities: Mapping[bytes, str]
    commands: tuple[Pattern, ...]
    command_lines: tuple[Pattern, ...]
    literal_lines: frozenset[str]
    values: Mapping[int, Mapping[str, frozenset[bytes]]]
    passed_over: frozenset[int]

    def banks(self) -> frozenset[str]:
        """Return the banks that any digest is listed for."""
        return frozenset(bank for bank, _ in self.listed)


def parse_boot_rules(document: Mapping[str, Any]) -> BootRules:
    """Read a document of this format. Raises PolicyError with every problem."""
    version = document.get(MARK)
    if version != VERSION or isinstance(version, bool):
        raise PolicyError(f"version {str(version)[:20]} of {MARK} is not known, this program reads {VERSION}")
    try:
        return compile_boot_rules(msgspec.convert(document, BootDocument))
    except msgspec.ValidationError as problem:
        raise PolicyError(str(problem)) from None


def compile_boot_rules(document: BootDocument) -> BootRules:
    """Compile a document. Raises PolicyError with every problem."""
    return _Compiler(document).rules()


class _Compiler:
    """Turns lists into look-ups and writes down what is wrong with them."""

    def __init__(self, document: BootDocument) -> None:
        self.document = document
        self.problems: list[str] = []
        self.listed: dict[tuple[str, int], dict[bytes, str]] = {}
        self.sections: dict[tuple[str, int, bytes], frozenset[str]] = {}
        self.any_data: set[bytes] = set()

    def rules(self) -> BootRules:
        document = self.document
        pcrs = frozenset(document.pcrs)
        self.check_pcrs(pcrs)
        for section, numbers in SECTION_PCRS.items():
            self.add(section, numbers, getattr(document, section))
        for text, entries in document.events.items():
            self.add(f"events.{text}", self.number(text, "events"), entries)
        rules = BootRules(
            document=document,
            pcrs=pcrs,
            listed=self.listed,
            sections=self.sections,
            any_data=frozenset(self.any_data),
            variables={name: self.contents(name, one) for name, one in document.variables.named()},
            authorities=self.certificates("authorities", document.authorities),
            commands=tuple(self.patterns("command_patterns", document.command_patterns)),
            command_lines=tuple(
                one for one in self.patterns("command_lines", document.command_lines) if not literal(one.pattern)
            ),
            literal_lines=frozenset(filter(None, map(literal, document.command_lines))),
            values=dict(self.values()),
            passed_over=frozenset(self.passed_over()),
        )
        self.check_meaning(rules)
        if self.problems:
            raise PolicyError(*self.problems)
        return rules

    def check_pcrs(self, pcrs: frozenset[int]) -> None:
        if not pcrs:
            self.problems.append("pcrs is empty, so that nothing would be judged")
        if strange := sorted(pcrs - BOOT_PCRS):
            self.problems.append(f"pcrs: a boot log does not account for {strange}, only for 0 to 9 and 11 to 15")

    def check_meaning(self, rules: BootRules) -> None:
        """Refuse what reads as a demand and would be none."""
        document = self.document
        needs_seven = {
            "secure_boot": document.secure_boot != "any",
            "variables": bool(rules.variables),
            "authorities": bool(document.authorities),
            "sbat_level": bool(document.sbat_level),
        }
        if 7 not in rules.pcrs:
            self.problems += [
                f"{name} is measured in PCR 7, which is not in pcrs" for name, used in needs_seven.items() if used
            ]
        self.check_keys(rules, needs_seven)
        for section in document.must_occur:
            signed = section == "boot_applications" and document.signed_applications
            if not getattr(document, section) and not signed:
                self.problems.append(f"must_occur names {section}, which lists nothing: no event could be one of it")
        for pcr in sorted(rules.passed_over & rules.values.keys()):
            self.problems.append(f"PCR {pcr} is under values and under unknown_events; choose one")
        for name, generation in document.sbat_level.items():
            if not name or generation < 1:
                self.problems.append(f"sbat_level: {name[:40]!r} has no generation of 1 or more")
        if sum(map(len, rules.listed.values())) > MAX_LISTED:
            self.problems.append(f"more than {MAX_LISTED} digests are listed")

    def check_keys(self, rules: BootRules, needs_seven: Mapping[str, bool]) -> None:
        document = self.document
        if 7 in rules.values:
            self.problems += [
                f"PCR 7 is compared as a whole under values, so {name} would not be looked at"
                for name, used in needs_seven.items()
                if used
            ]
        if document.signed_applications and not (document.secure_boot == "on" and document.authorities):
            self.problems.append(
                "signed_applications needs secure_boot on and authorities: who else would have checked?"
            )
        if document.signed_applications and 14 not in rules.pcrs - rules.passed_over:
            self.problems.append(
                "signed_applications needs PCR 14, where shim says that it checks nothing (MokSBState)"
            )
        if 7 in rules.passed_over and document.authorities:
            self.problems.append("unknown_events allows any on PCR 7, so any authority would be allowed, too")

    def add(self, section: str, pcrs: Iterable[int], entries: list[Known]) -> None:
        for index, entry in enumerate(entries):
            place = f"{section}[{index}]"
            found = list(self.digests(entry, place))
            for bank, digest in found:
                if entry.any_data:
                    self.any_data.add(digest)
                for pcr in pcrs:
                    self.listed.setdefault((bank, pcr), {})[digest] = entry.what or section
                    key = (bank, pcr, digest)
                    self.sections[key] = self.sections.get(key, frozenset()) | {section}

    def digests(self, entry: Known, place: str) -> Iterator[tuple[str, bytes]]:
        written = list(entry.digests())
        if not written:
            self.problems.append(f"{place} has no digest: name it sha256, sha384, sha512 or sha1")
        for bank, text in written:
            digest = self.digest(text, bank, f"{place}.{bank}")
            if digest:
                yield bank, digest

    def digest(self, text: str, bank: str, place: str) -> bytes:
        size = _SIZES[bank]
        if _HEX.fullmatch(text) and len(text) == 2 * size:
            return bytes.fromhex(text)
        self.problems.append(f"{place}: {text[:40]!r} is not the hexadecimal form of {size} bytes")
        return b""

    def certificates(self, place: str, entries: list[Certificate]) -> dict[bytes, str]:
        return {
            self.digest(one.sha256, "sha256", f"{place}[{index}].sha256"): one.what for index, one in enumerate(entries)
        }

    def contents(self, name: str, entry: Signatures) -> Contents:
        place = f"variables.{name}"
        found = {*self.certificates(f"{place}.certificates", entry.certificates)}
        found |= {self.digest(text, "sha256", f"{place}.images[{index}]") for index, text in enumerate(entry.images)}
        return Contents(entry.match, frozenset(found))

    def patterns(self, place: str, texts: list[str]) -> Iterator[Pattern]:
        for index, text in enumerate(texts):
            try:
                yield pattern(text)
            except PolicyError as problem:
                self.problems.append(f"{place}[{index}]: {problem}")

    def number(self, text: str, place: str) -> tuple[int, ...]:
        if text.isascii() and text.isdigit() and int(text) in self.document.pcrs:
            return (int(text),)
        self.problems.append(f"{place}: {text[:20]!r} is not the number of a PCR in pcrs")
        return ()

    def values(self) -> Iterator[tuple[int, Mapping[str, frozenset[bytes]]]]:
        for text, entries in self.document.values.items():
            allowed: dict[str, set[bytes]] = {}
            if not entries:
                self.problems.append(f"values.{text} lists nothing, so that no value could ever be right")
            for index, entry in enumerate(entries):
                for bank, digest in self.digests(entry, f"values.{text}[{index}]"):
                    allowed.setdefault(bank, set()).add(digest)
            for pcr in self.number(text, "values"):
                yield pcr, {bank: frozenset(digests) for bank, digests in allowed.items()}

    def passed_over(self) -> Iterator[int]:
        for text, what in self.document.unknown_events.items():
            numbers = self.number(text, "unknown_events")
            if what == "allow":
                yield from numbers


def literal(text: str) -> str:
    """Return the one text that a pattern matches, empty when it may match several."""
    plain = re.sub(r"\\([^0-9A-Za-z])", "", text)
    return re.sub(r"\\(.)", r"\1", text) if not re.search(r"[\\.^$*+?{}\[\]|()]", plain) else ""


_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)
_SIZES: Final = {algorithm.name: algorithm.size for algorithm in hashes.ALL}


def encode_boot_document(document: BootDocument) -> str:
    """Return a document as text for people to read and edit: one member a line, lists of numbers on one."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    return re.sub(r"\[[\s\d,]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def boot_policy_schema() -> dict[str, Any]:
    """Return the JSON Schema of the format, made of the types above."""
    schema = msgspec.json.schema(BootDocument)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "limeguard boot policy", **schema}
