"""Judging a measurement list: replay into PCR 10, then each entry against the runtime policy."""
