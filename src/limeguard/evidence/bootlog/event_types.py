"""Event types of the TCG PC Client Platform Firmware Profile 1.06, by number and by name."""

from collections.abc import Mapping
from typing import Final

EV_PREBOOT_CERT: Final = 0x0
EV_POST_CODE: Final = 0x1
EV_UNUSED: Final = 0x2
EV_NO_ACTION: Final = 0x3
EV_SEPARATOR: Final = 0x4
EV_ACTION: Final = 0x5
EV_EVENT_TAG: Final = 0x6
EV_S_CRTM_CONTENTS: Final = 0x7
EV_S_CRTM_VERSION: Final = 0x8
EV_CPU_MICROCODE: Final = 0x9
EV_PLATFORM_CONFIG_FLAGS: Final = 0xA
EV_TABLE_OF_DEVICES: Final = 0xB
EV_COMPACT_HASH: Final = 0xC
EV_IPL: Final = 0xD
EV_IPL_PARTITION_DATA: Final = 0xE
EV_NONHOST_CODE: Final = 0xF
EV_NONHOST_CONFIG: Final = 0x10
EV_NONHOST_INFO: Final = 0x11
EV_OMIT_BOOT_DEVICE_EVENTS: Final = 0x12
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_VARIABLE_BOOT: Final = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER: Final = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER: Final = 0x80000005
EV_EFI_GPT_EVENT: Final = 0x80000006
EV_EFI_ACTION: Final = 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB: Final = 0x80000008
EV_EFI_HANDOFF_TABLES: Final = 0x80000009
EV_EFI_PLATFORM_FIRMWARE_BLOB2: Final = 0x8000000A
EV_EFI_HANDOFF_TABLES2: Final = 0x8000000B
EV_EFI_VARIABLE_BOOT2: Final = 0x8000000C
EV_EFI_HCRTM_EVENT: Final = 0x80000010
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0

NAMES: Final[Mapping[int, str]] = {
    value: name for name, value in list(globals().items()) if name.startswith("EV_") and isinstance(value, int)
}
"""The name of each type, as it is written in decoded logs and in reference states."""

UNKNOWN: Final = "Unknown event type"
"""What stands in place of the name of a type that is not in the profile."""

LATER_NAMES: Final[Mapping[int, str]] = {
    0x13: "EV_POST_CODE2",
    0x800000E1: "EV_EFI_SPDM_DEVICE_BLOB",
    0x800000E2: "EV_EFI_SPDM_DEVICE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}
"""Types that are younger than the list policies were written for: named for people only, unknown in decoded logs."""

VARIABLE_TYPES: Final = frozenset(
    {EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2, EV_EFI_VARIABLE_AUTHORITY}
)
BOOT_VARIABLE_TYPES: Final = frozenset({EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2})
IMAGE_TYPES: Final = frozenset(
    {EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_BOOT_SERVICES_DRIVER, EV_EFI_RUNTIME_SERVICES_DRIVER}
)
