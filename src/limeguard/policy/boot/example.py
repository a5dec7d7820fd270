"""Keylime's built-in policy `example`: a reference state, and the test of a decoded log that follows from it.

The rows are those that reference states of existing sites are written for, gaps included: which data of the log may be
looked at is decided by the caller, who hands in a log without the rest.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from limeguard.crypto import hashes
from limeguard.policy.boot.checks import (
    AcceptAll,
    Action,
    And,
    AtMost,
    Collector,
    Each,
    Equal,
    Field,
    Key,
    KeyIn,
    KeysPresent,
    Members,
    Once,
    Or,
    Pattern,
    Rule,
    Separator,
    Text,
    VariableNamed,
    any_digest,
    dispatch,
    fields,
    key_lists,
    pattern,
    variable_dispatch,
)
from limeguard.policy.errors import PolicyError

RELEVANT: Final = frozenset({*range(10), 14})
MAX_ENTRIES: Final = 20_000
"""Members of one list of a reference state; the longest revocation lists have some hundred keys."""

X509: Final = ("a5c059a1-94e4-4aa7-87b5-ab155c2bf072", "a159c0a5-e494-a74a-87b5-ab155c2bf072")
SHA256_HASH: Final = ("c1c41626-504c-4092-aca9-41f936934328", "2616c4c1-4c50-9240-aca9-41f936934328")
GLOBAL: Final = ("8be4df61-93ca-11d2-aa0d-00e098032b8c", "61dfe48b-ca93-d211-aa0d-00e098032b8c")
DATABASE: Final = ("d719b2cb-3d3a-4596-a3bc-dad00e67656f", "cbb219d7-3a3d-9645-a3bc-dad00e67656f")
SHIM: Final = ("605dab50-e046-4300-abb6-3dd810dd8b23", "50ab5d60-46e0-0043-abb6-3dd810dd8b23")
"""Each GUID as it is written, and with its first three fields byte by byte, as tpm2-tools before 5.2 wrote them."""

_ACTIONS: Final[Mapping[int, frozenset[str]]] = {
    1: frozenset({"Entering ROM Based Setup"}),
    4: frozenset(
        {"Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option"},
    ),
    5: frozenset(
        {
            "Exit Boot Services Invocation",
            "Exit Boot Services Returned with Failure",
            "Exit Boot Services Returned with Success",
        }
    ),
}
_HEX = re.compile(r"0x((?:[0-9a-f]{2})*)", re.ASCII)
_SIZES: Final = {algorithm.name: algorithm.size for algorithm in hashes.ALL}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to boot: digests of what is started, and the pattern of the command line."""

    shim: str
    grub: str
    kernel: str
    initrd: str
    command_line: Pattern


@dataclass(frozen=True, slots=True)
class Firmware:
    """One firmware: the digest of its version, and those of its volumes in order."""

    scrtm: Mapping[str, str]
    volumes: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class ReferenceState:
    """What a node may boot, in the form that Keylime's tools make."""

    secure_boot: bool
    firmware: tuple[Firmware, ...]
    pk: frozenset[Key]
    kek: frozenset[Key]
    db: frozenset[Key]
    dbx: frozenset[Key]
    vendor_db: frozenset[Key]
    mok: tuple[Mapping[str, str], ...]
    mokx: tuple[Mapping[str, str], ...]
    kernels: tuple[Kernel, ...]


# --- reading --------------------------------------------------------------------------------------------------------


def parse_reference_state(document: Mapping[str, Any]) -> ReferenceState:
    """Read a reference state; members that are not known are passed over. Raises PolicyError with every problem."""
    reader = _Reader()
    secure_boot = reader.flag(document, "has_secureboot")
    state = ReferenceState(
        secure_boot=secure_boot,
        firmware=tuple(reader.firmware(document)),
        pk=reader.keys(document, "pk"),
        kek=reader.keys(document, "kek"),
        db=reader.keys(document, "db"),
        dbx=reader.keys(document, "dbx"),
        vendor_db=reader.keys(document, "vendor_db") if "vendor_db" in document else frozenset(),
        mok=tuple(reader.digests(document, "mokdig", "")),
        mokx=tuple(reader.digests(document, "mokxdig", "")),
        kernels=tuple(reader.kernels(document, secure_boot=secure_boot)),
    )
    if reader.problems:
        raise PolicyError(*reader.problems)
    return state


class _Reader:
    """Takes members out of a document and writes down what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def flag(self, document: Mapping[str, Any], name: str) -> bool:
        value = document.get(name, True)
        if not isinstance(value, bool):
            self.problems.append(f"{name} is neither true nor false")
        return value is True

    def list(self, document: Mapping[str, Any], name: str, place: str) -> Iterator[tuple[str, Any]]:
        """Yield the members of a list, each with its place."""
        value = document.get(name)
        where = f"{place}{name}"
        if name not in document:
            self.problems.append(f"{where} is missing")
        elif not isinstance(value, list):
            self.problems.append(f"{where} is not a list")
        elif len(value) > MAX_ENTRIES:
            self.problems.append(f"{where} has {len(value)} members, at most {MAX_ENTRIES} are allowed")
        else:
            yield from ((f"{where}[{index}]", member) for index, member in enumerate(value))

    def objects(self, document: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for where, member in self.list(document, name, ""):
            if isinstance(member, dict):
                yield where, member
            else:
                self.problems.append(f"{where} is not an object")

    def hexadecimal(self, value: object, where: str, size: int | None = None) -> str:
        """Return the digits behind `0x`; they are compared as text, so there is one way to write them."""
        match = _HEX.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            self.problems.append(f"{where} is not 0x and lower-case hexadecimal digits")
            return ""
        if size is not None and len(match[1]) != 2 * size:
            self.problems.append(f"{where} has {len(match[1]) // 2} bytes, not {size}")
        return match[1]

    def digest(self, value: object, where: str) -> dict[str, str]:
        if not isinstance(value, dict):
            self.problems.append(f"{where} is not an object of algorithms and digests")
            return {}
        found: dict[str, str] = {}
        for name, text in value.items():
            if name in _SIZES:
                found[name] = self.hexadecimal(text, f"{where}.{name}", _SIZES[name])
            else:
                self.problems.append(f"{where}: {name[:40]!r} is not a hash algorithm")
        return found

    def digests(self, document: Mapping[str, Any], name: str, place: str) -> Iterator[dict[str, str]]:
        for where, member in self.list(document, name, place):
            yield self.digest(member, where)

    def keys(self, document: Mapping[str, Any], name: str) -> frozenset[Key]:
        found: set[Key] = set()
        for where, member in self.objects(document, name):
            owner = member.get("SignatureOwner")
            if not isinstance(owner, str):
                self.problems.append(f"{where}.SignatureOwner is not a GUID")
                continue
            found.add((owner, self.hexadecimal(member.get("SignatureData"), f"{where}.SignatureData")))
        return frozenset(found)

    def firmware(self, document: Mapping[str, Any]) -> Iterator[Firmware]:
        for where, member in self.objects(document, "scrtm_and_bios"):
            scrtm = self.digest(member.get("scrtm"), f"{where}.scrtm")
            yield Firmware(scrtm, tuple(self.digests(member, "platform_firmware", f"{where}.")))

    def kernels(self, document: Mapping[str, Any], *, secure_boot: bool) -> Iterator[Kernel]:
        kernel = "kernel_authcode_sha256" if secure_boot else "vmlinuz_plain_sha256"
        names = ("shim_authcode_sha256", "grub_authcode_sha256", kernel, "initrd_plain_sha256")
        for where, member in self.objects(document, "kernels"):
            digests = [self.hexadecimal(member.get(name), f"{where}.{name}", 32) for name in names]
            text = member.get("kernel_cmdline")
            if not isinstance(text, str):
                self.problems.append(f"{where}.kernel_cmdline is not a pattern")
                continue
            try:
                yield Kernel(digests[0], digests[1], digests[2], digests[3], pattern(f"kernel_cmdline: {text}"))
            except PolicyError as problem:
                self.problems.append(f"{where}.kernel_cmdline {problem}")


# --- the test -------------------------------------------------------------------------------------------------------


def example_test(state: ReferenceState) -> Rule:
    """Return the test of a decoded log: every event has its row, and what was collected is one of the ways to boot."""
    kernels = Or(tuple(_kernel_test(kernel, secure_boot=state.secure_boot) for kernel in state.kernels))
    firmware = Or(tuple(_firmware_test(one) for one in state.firmware))
    names = ("s_crtms", "platform_firmware_blobs", "bsas", "kernel_cmdlines", "vmlinuz", "ipl9s")
    collected = Collector(names, And((kernels, firmware)))
    events = dispatch(
        ("PCRIndex", "EventType"),
        *_firmware_rows(collected.into),
        *_configuration_rows(),
        *_secure_boot_rows(state),
        *_loader_rows(state, collected.into),
    )
    return And((collected.start, Field("events", Each(events)), collected.finish))


def _kernel_test(kernel: Kernel, *, secure_boot: bool) -> Rule:
    def image(digest: str) -> Rule:
        return any_digest([{"sha256": digest}])

    loaders = (image(kernel.shim), image(kernel.grub))
    applications: Rule = Members(loaders)
    vmlinuz: Rule = image(kernel.kernel)
    if secure_boot:
        started = image(kernel.kernel)
        applications = Or((Members((*loaders, started)), Members((*loaders, started, started))))
        vmlinuz = AcceptAll()
    return fields(
        bsas=applications,
        ipl9s=Members((image(kernel.initrd),)),
        vmlinuz=Members((vmlinuz,)),
        kernel_cmdlines=Members((kernel.command_line,)),
    )


def _firmware_test(firmware: Firmware) -> Rule:
    volumes = tuple(any_digest([volume]) for volume in firmware.volumes)
    return fields(s_crtms=Members((any_digest([firmware.scrtm]),)), platform_firmware_blobs=Members(volumes))


Row = tuple[tuple[object, ...], Rule]
Into = Callable[[str], Rule]


def _firmware_rows(into: Into) -> Iterator[Row]:
    yield (0, "EV_NO_ACTION"), Once(AcceptAll())
    yield (0, "EV_S_CRTM_VERSION"), into("s_crtms")
    blobs = into("platform_firmware_blobs")
    yield (0, "EV_EFI_PLATFORM_FIRMWARE_BLOB"), blobs
    yield (0, "EV_EFI_PLATFORM_FIRMWARE_BLOB2"), blobs
    for pcr in range(8):
        yield (pcr, "EV_SEPARATOR"), Separator()


def _configuration_rows() -> Iterator[Row]:
    for name in ("EV_CPU_MICROCODE", "EV_EFI_HANDOFF_TABLES", "EV_EFI_HANDOFF_TABLES2"):
        yield (1, name), Once(AcceptAll())
    names = pattern("BootOrder|Boot[0-9a-fA-F]+")
    yield (1, "EV_EFI_VARIABLE_BOOT"), Or(tuple(VariableNamed(guid, names, AcceptAll()) for guid in GLOBAL))
    yield (1, "EV_PLATFORM_CONFIG_FLAGS"), AtMost(4)
    for pcr, allowed in _ACTIONS.items():
        yield (pcr, "EV_EFI_ACTION"), Action(allowed)
    yield (2, "EV_EFI_BOOT_SERVICES_DRIVER"), AcceptAll()


def _secure_boot_rows(state: ReferenceState) -> Iterator[Row]:
    def listed(types: Iterable[str], keys: frozenset[Key]) -> Rule:
        loose = not state.secure_boot and not keys
        return Once(AcceptAll() if loose else key_lists(types, keys))

    either = (*X509, *SHA256_HASH)
    revoked: Rule = KeysPresent(frozenset(SHA256_HASH), state.dbx)
    configuration = variable_dispatch(
        *_both(GLOBAL, "SecureBoot", Field("Enabled", Equal("Yes" if state.secure_boot else "No"))),
        *_both(GLOBAL, "PK", listed(X509, state.pk)),
        *_both(GLOBAL, "KEK", listed(X509, state.kek)),
        *_both(DATABASE, "db", listed(either, state.db)),
        *_both(DATABASE, "vendor_db", listed(either, state.vendor_db)),
        *_both(DATABASE, "dbx", Once(AcceptAll() if not state.secure_boot and not state.dbx else revoked)),
    )
    yield (7, "EV_EFI_VARIABLE_DRIVER_CONFIG"), configuration
    vendor = Each(KeyIn(state.vendor_db))
    free = not state.secure_boot and not state.vendor_db
    authority = variable_dispatch(
        *_both(DATABASE, "db", Once(AcceptAll())),
        *_both(DATABASE, "vendor_db", Once(AcceptAll() if free else vendor)),
        *_both(SHIM, "SbatLevel", Once(AcceptAll())),
        *_both(SHIM, "Shim", Once(AcceptAll())),
        ((SHIM[0], "MokListTrusted"), Once(Field("Enabled", Or((Equal("Yes"), Equal("No")))))),
        ((SHIM[0], "MokListRT"), Once(AcceptAll())),
    )
    yield (7, "EV_EFI_VARIABLE_AUTHORITY"), authority


def _both(guids: Sequence[str], name: str, test: Rule) -> Iterator[Row]:
    """Yield the same test under both spellings of the GUID, so that what passes once passes once in all."""
    yield from (((guid, name), test) for guid in guids)


def _loader_rows(state: ReferenceState, into: Into) -> Iterator[Row]:
    yield (4, "EV_EFI_BOOT_SERVICES_APPLICATION"), into("bsas")
    yield (5, "EV_EFI_GPT_EVENT"), Once(AcceptAll())

    def text(test: Rule) -> Rule:
        return Field("Event", Field("String", test))

    command = And((Text("kernel_cmdline: "), into("kernel_cmdlines")))
    yield (8, "EV_IPL"), text(Or((Text("grub_cmd: ", lines=True), command)))
    yield (
        (9, "EV_IPL"),
        Or(
            (
                text(Text(part="/loader/entries")),
                text(Text(part="/grub")),
                And((text(Text(part="/vmlinuz")), into("vmlinuz"))),
                And((text(Or((Text(part="/initrd"), Text(part="/initramfs")))), into("ipl9s"))),
            )
        ),
    )
    yield (
        (14, "EV_IPL"),
        Or(
            (
                And((text(Equal("MokList")), any_digest(state.mok))),
                And((text(Equal("MokListX")), any_digest(state.mokx))),
                And((text(Equal("MokListTrusted")), Once(AcceptAll()))),
            )
        ),
    )
