"""Traces by OpenTelemetry: off, and free, unless the standard environment asks for an exporter.

Knows nothing of the domain. `opentelemetry-api` (the extra `otel`) is all that this needs; what is to be exported needs
the SDK and an exporter, which operators install, or run the program under `opentelemetry-instrument`.
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any, Final

from limeguard.telemetry.logs import get_logger
from limeguard.telemetry.text import clean

log = get_logger("keylime.tracing")

EXPORTER: Final = "OTEL_TRACES_EXPORTER"
DISABLED: Final = "OTEL_SDK_DISABLED"
SERVICE: Final = "OTEL_SERVICE_NAME"
EXPORTERS: Final = "opentelemetry_traces_exporter"
"""The group of entry points in which packages offer their exporters."""
MISSING: Final = "%s is set, and nothing is traced: %s. pip install 'limeguard[otel]' opentelemetry-sdk %s"


def wanted(env: Mapping[str, str]) -> str:
    """Return the name of the exporter that the environment asks for, empty for none."""
    name = env.get(EXPORTER, "").strip().lower()
    off = env.get(DISABLED, "").strip().lower() == "true"
    return "" if off or name == "none" else name


def tracer_for(service: str, env: Mapping[str, str]) -> Any:
    """Return a tracer when the environment asks for one and there is one, else None."""
    exporter = wanted(env)
    if not exporter:
        return None
    try:
        from opentelemetry import trace
    except ImportError:
        log.warning(MISSING, EXPORTER, "the library is not installed", "")
        return None
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        provider = _provider(exporter, env.get(SERVICE, "").strip() or service)
        if provider is None:
            return None
        trace.set_tracer_provider(provider)
    return trace.get_tracer(f"limeguard.{service}")


def _provider(exporter: str, service: str) -> Any:
    """Return what exports spans; None, with the reason in the log, when that cannot be done."""
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(MISSING, EXPORTER, "the SDK is not installed", "")
        return None
    offered = importlib.metadata.entry_points(group=EXPORTERS, name=exporter)
    if not offered:
        log.warning(MISSING, EXPORTER, f"no exporter {clean(exporter, 60)} is installed", "opentelemetry-exporter-otlp")
        return None
    try:
        made = next(iter(offered)).load()()
    except Exception as problem:  # noqa: BLE001 - whatever keeps it from starting must not keep the verifier from it
        log.warning("%s: the exporter does not start, nothing is traced: %s", EXPORTER, clean(problem))
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(made))
    return provider
