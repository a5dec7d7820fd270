"""From the payload options to what is delivered."""

from pathlib import Path

from limeguard.tenant.context import Context
from limeguard.tenant.payload import (
    NOTHING,
    Delivery,
    check_size,
    from_file,
    from_keys,
    from_package,
    included_files,
)


def delivery_for(context: Context) -> Delivery:
    """Build what the options of a request ask to deliver. Raises TenantError."""
    request, limit = context.request, context.rules.max_payload_size
    randomness = context.edges.randomness
    delivery = NOTHING
    if request.file:
        delivery = from_file(Path(request.file), randomness, limit)
    elif request.key:
        delivery = from_keys(Path(request.key), Path(request.payload) if request.payload else None, limit)
    elif request.cert:
        extra = included_files(Path(request.include), limit) if request.include else {}
        package = context.authority(request.cert).package_for(request.node)
        delivery = from_package(package, extra, randomness)
    check_size(delivery, limit)
    return delivery
