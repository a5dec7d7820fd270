"""TPM 2.0 structures, quotes, and credential activation, without a TPM library."""
