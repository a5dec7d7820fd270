"""A fleet of simulated machines: software TPM keys, real quotes and real TLS, to size servers and to test them."""
