"""Return codes of a TPM as sentences that say what to do. Pure.

The codes are those of TPM 2.0 Part 2 §6.6 and the layers of the TSS 2.0.
"""

from collections.abc import Mapping

LOCKOUT = 0x921
OBJECT_MEMORY = 0x902
SESSION_MEMORY = 0x903

_FORMAT_ONE = 0x080
_PARAMETER = 0x040
_BASE_OF_FORMAT_ONE = 0x0BF
_TCTI_LAYER = 10
_RESOURCE_MANAGER_LAYERS = frozenset({11, 12})

_MEMORY_ADVICE = "Another program holds them, or they leaked: use a resource manager (/dev/tpmrm0) or flush them"

_SENTENCES: Mapping[int, str] = {
    0x100: "The TPM has not been started (TPM2_Startup); restart the machine or start the software TPM with "
    "--flags startup-clear",
    0x101: "The TPM is in failure mode; restart the machine, and replace the TPM if that does not help",
    0x902: f"The TPM has no room for another object. {_MEMORY_ADVICE} (tpm2_flushcontext --transient-object)",
    0x903: f"The TPM has no room for another session. {_MEMORY_ADVICE} (tpm2_flushcontext --loaded-session)",
    0x904: f"The TPM is out of memory. {_MEMORY_ADVICE} (tpm2_flushcontext --transient-object)",
    0x905: "The TPM has no more session handles. Flush the ones that leaked (tpm2_flushcontext --saved-session)",
    0x920: "The TPM limits how often its memory is written; wait a little and try again",
    0x921: "The TPM is in lockout because it was stopped several times without shutdown or wrong passwords were tried. "
    "Wait for the recovery time or run tpm2_dictionarylockout --clear-lockout",
    0x923: "The memory of the TPM is not available; restart the machine",
    0x08E: "The password was refused. Set tpm_ownerpassword to the password of the endorsement hierarchy",
    0x0A2: "The password was refused. Set tpm_ownerpassword to the password of the endorsement hierarchy",
    0x085: "The endorsement hierarchy is disabled or the handle is of another hierarchy; enable it in the firmware",
    0x08B: "There is no object under that handle",
    0x09F: "The key does not belong to this TPM or was altered",
    0x087: "The TPM does not support the key size that tpm_encryption_alg asks for",
    0x0A6: "The TPM does not support the curve that tpm_encryption_alg asks for",
    0x084: "The TPM does not accept a value; it may not support the configured algorithms",
    0x083: "The TPM does not support the hash that tpm_hash_alg asks for",
    0x092: "The TPM does not support the scheme that tpm_signing_alg asks for",
    0x09D: "The policy of the key was not met; an EK under ek_handle must follow a TCG template",
    0x12F: "The key cannot be used without its policy; an EK under ek_handle must follow a TCG template",
}


def base_code(rc: int) -> int:
    """Return the code without the number of the handle, session or parameter that it is about."""
    return rc & _BASE_OF_FORMAT_ONE if rc & _FORMAT_ONE else rc & 0xFFF


def is_about_parameter(rc: int) -> bool:
    """Say whether the TPM refused what it was given, rather than being unable to work."""
    return not rc >> 16 and bool(rc & _FORMAT_ONE) and bool(rc & _PARAMETER)


def explain(rc: int) -> str:
    """Return a sentence with the code at its end."""
    layer = rc >> 16 & 0xFF
    if layer == _TCTI_LAYER:
        sentence = "The TPM cannot be reached; check that TCTI names it and that this user may open it"
    elif layer and layer not in _RESOURCE_MANAGER_LAYERS:
        sentence = "The TPM software stack failed"
    else:
        sentence = _SENTENCES.get(base_code(rc), "The TPM refused the command")
    return f"{sentence} (code {rc:#05x})."


def is_lost_connection(rc: int) -> bool:
    """Say whether the TPM itself was not reached: a software TPM or a resource manager that was started again."""
    return rc >> 16 & 0xFF == _TCTI_LAYER


def is_lost_object(rc: int) -> bool:
    """Say whether a handle that was good before names nothing now: TPM_RC_REFERENCE_H0 to H6, TPM_RC_HANDLE."""
    return rc & 0xFFF in range(0x910, 0x917) or (bool(rc & _FORMAT_ONE) and base_code(rc) == 0x08B)
