"""Which halves of the payload key belong together, in any order, within a bound."""

from hypothesis import given
from hypothesis import strategies as st

from limeguard.agent.shares import MAX_WAITING, Combined, HalfU, KeyHalves
from limeguard.crypto.keysplit import bootstrap_auth_tag, split

ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
KEY = bytes(range(32))
V = b"\xaa" * 32


def half(key: bytes = KEY, v: bytes = V, payload: bytes | None = b"sealed") -> HalfU:
    return HalfU(split(key, v), bytes.fromhex(bootstrap_auth_tag(key, ID)), payload)


def test_halves_give_the_key_in_either_order() -> None:
    first = KeyHalves(ID)
    assert first.add_u(half()) is None
    assert first.add_v(V) == Combined(KEY, b"sealed")
    second = KeyHalves(ID)
    assert second.add_v(V) is None
    assert second.add_u(half()) == Combined(KEY, b"sealed")
    assert second.waiting == (0, 0)


def test_a_short_key_is_accepted_with_halves_of_its_length() -> None:
    halves = KeyHalves(ID)
    short = HalfU(split(KEY[:16], V[:16]), bytes.fromhex(bootstrap_auth_tag(KEY[:16], ID)), None)
    assert halves.add_u(short) is None
    assert halves.add_v(V) is None
    assert halves.add_v(V[:16]) == Combined(KEY[:16], None)


# trust: bound-identity
def test_a_tag_for_another_node_never_fits() -> None:
    halves = KeyHalves("another")
    assert halves.add_u(half()) is None
    assert halves.add_v(V) is None
    assert halves.waiting == (1, 1)


# trust: bounded
def test_halves_without_a_partner_stay_bounded_and_the_newest_still_fit() -> None:
    halves = KeyHalves(ID)
    for number in range(100):
        assert halves.add_v(number.to_bytes(32, "big")) is None
        assert halves.add_u(HalfU(number.to_bytes(32, "little"), bytes(48), b"x")) is None
    assert halves.waiting == (MAX_WAITING, MAX_WAITING)
    assert halves.add_v(V) is None
    assert halves.add_u(half()) == Combined(KEY, b"sealed")


# trust: secret
def test_no_half_shows_itself() -> None:
    assert "sealed" not in repr(half())
    assert "sealed" not in repr(Combined(KEY, b"sealed"))


# trust: enrolment-order
@given(order=st.permutations(["u", "v", "u2", "v2", "noise u", "noise v"]))
def test_every_order_of_arrival_finds_a_right_key_and_no_wrong_one(order: list[str]) -> None:
    other_key, other_v = bytes(32), b"\x55" * 32
    halves = KeyHalves(ID)
    messages = {
        "u": lambda: halves.add_u(half()),
        "v": lambda: halves.add_v(V),
        "u2": lambda: halves.add_u(half(other_key, other_v)),
        "v2": lambda: halves.add_v(other_v),
        "noise u": lambda: halves.add_u(HalfU(b"\x01" * 32, bytes(48), None)),
        "noise v": lambda: halves.add_v(b"\x02" * 16),
    }
    found = {combined.key for combined in (messages[name]() for name in order) if combined}
    # A match clears both lists, so a half that waited for the other pair must be sent again; nothing false is found.
    assert found <= {KEY, other_key}
    assert found
