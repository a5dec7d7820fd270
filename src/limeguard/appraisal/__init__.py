"""Compares evidence with policy; the only judge. Pure: the present time is handed in."""
