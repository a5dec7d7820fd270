"""Fetching what an option names by URL: one plain request, no redirect, bounded; the checksum proves the content."""

from limeguard.telemetry import clean
from limeguard.tenant.context import Context
from limeguard.tenant.errors import TenantError
from limeguard.tenant.report import info
from limeguard.tenant.servers import OK
from limeguard.web.answers import Unreachable


async def download(url: str, context: Context) -> bytes:
    """Fetch a file. Raises TenantError when there is no answer with status 200."""
    if not url.startswith(("https://", "http://")):
        raise TenantError(f"{clean(url)} is no HTTP URL")
    info(context.report, f"Downloading {clean(url)}")
    try:
        answer = await context.edges.downloads.request("GET", url)
    except Unreachable as problem:
        raise TenantError(f"{clean(url)} cannot be downloaded: {clean(problem.reason)}") from problem
    if answer.status != OK:
        raise TenantError(f"{clean(url)} cannot be downloaded: status {answer.status}")
    return answer.body
