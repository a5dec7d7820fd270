"""The boot log: what firmware, boot loaders and kernel stubs say they measured before the kernel ran."""
