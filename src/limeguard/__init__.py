"""limeguard: remote attestation for fleets, compatible with the Keylime protocol."""

__version__ = "0.1.0"
