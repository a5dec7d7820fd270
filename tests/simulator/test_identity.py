"""The maker of simulated TPMs: what it certified is traced to it, and to nobody else."""

import time

from limeguard.crypto.chains import first_certificate, issued_by_store, parse_certificate, public_key_der
from limeguard.crypto.keys import spki_der
from limeguard.simulator.identity import TpmMaker
from limeguard.simulator.softtpm import SoftEk


def test_an_ek_is_traced_to_its_maker_alone() -> None:
    maker, other = TpmMaker.create(time.time()), TpmMaker.create(time.time())
    ek = SoftEk.generate("ecc256", number=7)
    found = parse_certificate(first_certificate(maker.certify(ek.key.public_key()).encode()))
    assert public_key_der(found) == spki_der(ek.area.public_key())
    stores = [(parse_certificate(first_certificate(one.pem.encode())),) for one in (maker, other)]
    assert [issued_by_store(found, store, ()) for store in stores] == [True, False]
