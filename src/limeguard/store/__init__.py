"""The database, speaking the domain: rows and SQL stop here."""
