"""Proven evidence against policies: the only judge."""
