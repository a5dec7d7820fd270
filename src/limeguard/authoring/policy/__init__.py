"""Making runtime policies: digests from where files are known, merged into one document."""
