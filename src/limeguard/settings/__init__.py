"""Settings: Keylime's files and environment to frozen values, once, with every problem said together.

A program calls `load(COMPONENT, Sources.of_process())`. Knows nothing of the domain; importing it reads nothing.
"""

from limeguard.settings.load import (
    Examined,
    Found,
    Loaded,
    Notice,
    SettingsError,
    examine,
    load,
    variable_of,
)
from limeguard.settings.options import Component, IfSet, Option, Syntax, options_of
from limeguard.settings.parsing import Problem
from limeguard.settings.sources import BUILT_IN, Origin, Sources
from limeguard.settings.tls import Identity, TlsFiles

__all__ = [
    "BUILT_IN",
    "Component",
    "Examined",
    "Found",
    "Identity",
    "IfSet",
    "Loaded",
    "Notice",
    "Option",
    "Origin",
    "Problem",
    "SettingsError",
    "Sources",
    "Syntax",
    "TlsFiles",
    "examine",
    "load",
    "options_of",
    "variable_of",
]
