"""What changed from one boot policy to another, in words: what a node may boot now, and what it no longer may."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import UNSET

from limeguard.policy.boot.rules import BootDocument, Certificate, Known, Signatures

SECTIONS: Final = {
    "firmware": "firmware",
    "option_roms": "option ROM",
    "boot_applications": "boot application",
    "commands": "GRUB command",
    "boot_files": "boot file",
    "initrds": "initrd",
    "mok": "machine owner key list",
}
_SHORT: Final = 12


@dataclass(frozen=True, slots=True)
class Change:
    """One change: where, what it was and what it is (empty for nothing), and the sentence that says so."""

    member: str
    before: str
    after: str
    words: str


def changes(before: BootDocument, after: BootDocument) -> Iterator[Change]:
    """Yield what changed, the most telling first."""
    yield from _settings(before, after)
    yield from _databases(before, after)
    yield from _certificates("authorities", "authority", before.authorities, after.authorities)
    yield from _levels(before.sbat_level, after.sbat_level)
    for member, name in SECTIONS.items():
        yield from _listed(member, name, getattr(before, member), getattr(after, member))
    yield from _lines("command_lines", "command line", before.command_lines, after.command_lines)
    yield from _lines("command_patterns", "pattern for GRUB commands", before.command_patterns, after.command_patterns)
    for text in sorted({*before.events, *after.events}, key=int):
        yield from _listed(
            f"events.{text}", f"event on PCR {text}", before.events.get(text, []), after.events.get(text, [])
        )
    for text in sorted({*before.values, *after.values}, key=int):
        yield from _listed(
            f"values.{text}", f"value of PCR {text}", before.values.get(text, []), after.values.get(text, [])
        )


def _settings(before: BootDocument, after: BootDocument) -> Iterator[Change]:
    if before.secure_boot != after.secure_boot:
        words = f"Secure Boot: {before.secure_boot} -> {after.secure_boot}"
        yield Change("secure_boot", before.secure_boot, after.secure_boot, words)
    if before.signed_applications != after.signed_applications:
        said = "any signed image may start" if after.signed_applications else "only listed images may start"
        yield Change(
            "signed_applications", str(before.signed_applications), str(after.signed_applications), f"now {said}"
        )
    yield from _numbers("pcrs", "judged PCRs", before.pcrs, after.pcrs)
    passed = [[int(pcr) for pcr, what in one.unknown_events.items() if what == "allow"] for one in (before, after)]
    yield from _numbers("unknown_events", "PCRs whose unknown events are passed over", *passed)
    if sorted(before.must_occur) != sorted(after.must_occur):
        old, new = ", ".join(before.must_occur), ", ".join(after.must_occur)
        yield Change("must_occur", old, new, f"required events: {old or 'none'} -> {new or 'none'}")


def _numbers(member: str, what: str, before: Iterable[int], after: Iterable[int]) -> Iterator[Change]:
    old, new = (", ".join(map(str, sorted(one))) or "none" for one in (before, after))
    if old != new:
        yield Change(member, old, new, f"{what}: {old} -> {new}")


# --- keys -----------------------------------------------------------------------------------------------------------


def _databases(before: BootDocument, after: BootDocument) -> Iterator[Change]:
    old, new = dict(before.variables.named()), dict(after.variables.named())
    for name in ("PK", "KEK", "db", "dbx"):
        if (name in old) is not (name in new):
            said = "is compared now" if name in new else "is no longer compared"
            yield Change(
                f"variables.{name}",
                "" if name in new else "compared",
                "compared" if name in new else "",
                f"{name} {said}",
            )
        elif name in old:
            yield from _database(name, old[name], new[name])


def _database(name: str, before: Signatures, after: Signatures) -> Iterator[Change]:
    member = f"variables.{name}"
    if before.match != after.match:
        yield Change(member, before.match, after.match, f"{name} is compared as '{after.match}', was '{before.match}'")
    yield from _certificates(member, f"{name} certificate", before.certificates, after.certificates)
    old, new = ({text.lower() for text in one.images} for one in (before, after))
    for verb, fewer, more in (("gained", old, new), ("lost", new, old)):
        count = len(more - fewer)
        if count:
            words = f"{name} {verb} {count} {'entry' if count == 1 else 'entries'}"
            yield Change(member, f"{len(old)} images", f"{len(new)} images", words)


def _certificates(
    member: str, what: str, before: Sequence[Certificate], after: Sequence[Certificate]
) -> Iterator[Change]:
    old, new = ({one.sha256.lower(): one.what for one in listed} for listed in (before, after))
    for digest in [*old, *new]:
        name = f"{old.get(digest) or new.get(digest) or 'unnamed'} (sha256 {digest[:_SHORT]}…)"
        if digest not in new:
            yield Change(member, digest, "", f"{what} gone: {name}")
        elif digest not in old:
            yield Change(member, "", digest, f"new {what}: {name}")


def _levels(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[Change]:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old != new:
            what = "shim's revocation level" if name == "sbat" else f"revocation level of {name}"
            words = f"{what}: {old or 'none'} -> {new or 'none'}"
            yield Change("sbat_level", str(old or ""), str(new or ""), words)


# --- digests --------------------------------------------------------------------------------------------------------


def _listed(member: str, what: str, before: Sequence[Known], after: Sequence[Known]) -> Iterator[Change]:
    gone, new = _unmatched(before, after), _unmatched(after, before)
    for old in list(gone):
        other = _successor(old, gone, new)
        if other is not None:
            gone.remove(old)
            new.remove(other)
            yield Change(member, _digest(old), _digest(other), _became(what, old, other))
    for one in gone:
        yield Change(member, _digest(one), "", f"{what} gone: {_named(one)}")
    for one in new:
        yield Change(member, "", _digest(one), f"new {what}: {_named(one)}")


def _unmatched(these: Sequence[Known], those: Sequence[Known]) -> list[Known]:
    """Return those entries that share no digest with the other list: a bank more or less is no change."""
    digests = {pair for one in those for pair in _pairs(one)}
    return [one for one in these if not digests.intersection(_pairs(one))]


def _pairs(known: Known) -> set[tuple[str, str]]:
    return {(bank, digest.lower()) for bank, digest in known.digests()}


def _successor(old: Known, gone: Sequence[Known], new: Sequence[Known]) -> Known | None:
    """Return the entry that took the place of an old one: of the same name, or alone in its role on both sides."""
    same = [one for one in new if one.what == old.what]
    if len(same) == 1 and [one.what for one in gone].count(old.what) == 1:
        return same[0]
    role = _role(old)
    alone = [one for one in new if _role(one) == role]
    if role and len(alone) == 1 and [_role(one) for one in gone].count(role) == 1:
        return alone[0]
    return None


def _role(known: Known) -> str:
    return known.what.partition(" ")[0].lower()


def _became(what: str, old: Known, new: Known) -> str:
    digests = f"{_digest(old)[:_SHORT]}… -> {_digest(new)[:_SHORT]}…"
    if old.what == new.what:
        return f"{what} {old.what} changed: {digests}"
    return f"{what}: {old.what} -> {new.what} ({digests})"


def _named(known: Known) -> str:
    return f"{known.what or 'unnamed'} ({_digest(known)[:_SHORT]}…)"


def _digest(known: Known) -> str:
    """Return the digest that both sides are likely to have."""
    for value in (known.sha256, known.sha384, known.sha512, known.sha1):
        if value is not UNSET:
            return value.lower()
    return ""


# --- command lines --------------------------------------------------------------------------------------------------


def _lines(member: str, what: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Change]:
    gone = [text for text in before if text not in after]
    new = [text for text in after if text not in before]
    if len(gone) == len(new) == 1:
        yield Change(member, gone[0], new[0], f"{what}: {_word_changes(gone[0], new[0])}")
        return
    for text in gone:
        yield Change(member, text, "", f"{what} gone: {text}")
    for text in new:
        yield Change(member, "", text, f"new {what}: {text}")


def _word_changes(before: str, after: str) -> str:
    """Return which words came and went; patterns made from logs escape blanks."""
    old, new = (text.replace("\\ ", " ").split() for text in (before, after))
    parts = [f"lost {word}" for word in old if word not in new] + [f"gained {word}" for word in new if word not in old]
    return "; ".join(parts) or "the same words in another order or number"
