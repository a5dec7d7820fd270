"""ZIP files for nodes: stored and not deflated, closed to others, the same bytes for the same input."""

import io
import stat
import zipfile
from collections.abc import Mapping
from datetime import datetime

OLDEST = 1980
"""The first year that a ZIP file can name."""


def make_zip(files: Mapping[str, bytes], now: datetime) -> bytes:
    """Pack files by name; `now` becomes their date."""
    moment = (max(now.year, OLDEST), now.month, now.day, now.hour, now.minute, now.second)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, moment)
            member.external_attr = (stat.S_IFREG | 0o600) << 16
            archive.writestr(member, content)
    return packed.getvalue()
