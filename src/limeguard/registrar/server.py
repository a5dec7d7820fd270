"""A registrar that runs: a database brought up to date, two listeners over one application, and an orderly stop."""

import asyncio
import ssl

from limeguard.registrar.identity import IdentityRules
from limeguard.registrar.routes import make_app
from limeguard.registrar.service import RegistrarService
from limeguard.registrar.settings import RegistrarSettings
from limeguard.store.database import Database
from limeguard.store.registrations import COMPONENT, Registrations
from limeguard.telemetry import get_logger
from limeguard.web.serve import Listener

log = get_logger("keylime.registrar")


class RegistrarServer:
    """Serves registrations over HTTP and HTTPS in this process. `port` and `tls_port` are known once it has started."""

    def __init__(self, settings: RegistrarSettings, context: ssl.SSLContext, database: Database) -> None:
        """Prepare; nothing is bound or opened yet."""
        self._settings = settings
        self._database = database
        rules = IdentityRules(
            tpm_identity=settings.tpm_identity,
            malformed_cert_action=settings.malformed_cert_action,
            allow_other_tpm=settings.allow_reregistration_with_new_tpm,
        )
        app = make_app(RegistrarService(Registrations(database), rules), settings.max_upload_size)
        self._plain = Listener(app, settings.ip, settings.port)
        self._secure = Listener(app, settings.ip, settings.tls_port, context)

    @property
    def port(self) -> int:
        """The HTTP port."""
        return self._plain.port

    @property
    def tls_port(self) -> int:
        """The HTTPS port."""
        return self._secure.port

    async def start(self) -> None:
        """Migrate and listen. Raises StoreUnavailable, OSError; then nothing is left open."""
        try:
            if self._settings.auto_migrate_db:
                await self._database.migrate(COMPONENT)
            await self._plain.start()
            await self._secure.start()
        except BaseException:
            await self.stop()
            raise
        log.info(
            "Listening on %s:%d/%d (HTTP/S) with 1 worker processes...", self._settings.ip, self.port, self.tls_port
        )

    async def stop(self) -> None:
        """Let running requests end for a few seconds, then close everything."""
        await asyncio.gather(self._plain.stop(), self._secure.stop())
        await self._database.close()
