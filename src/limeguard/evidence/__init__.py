"""Bytes from nodes to frozen facts, marked as said or proven. Holds no opinion about what is good."""
