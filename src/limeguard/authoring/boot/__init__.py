"""Makes boot policies: from logs, in our own format or as Keylime's reference states, and says what changed."""
