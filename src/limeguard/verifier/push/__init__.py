"""Nodes that attest by themselves: sessions, what they are asked for, what they send, and who answers them."""
