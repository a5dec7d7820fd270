"""Algorithms, keys and certificates, thin over pyca/cryptography. Pure: no I/O, no clock, no settings."""
