"""Logs and traces: the logger names and the line layout that Keylime's users match on, and the cleaning of text."""

from limeguard.telemetry.logs import LoggingConfigError, get_logger, setup_logging
from limeguard.telemetry.text import clean

__all__ = ["LoggingConfigError", "clean", "get_logger", "setup_logging"]
