"""The kernel's IMA measurement list: its templates, its two forms, and its replay into PCR 10."""
