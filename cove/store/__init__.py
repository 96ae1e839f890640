"""Keys, revisions, transactions, watches and leases: the interface, and SQLite behind it."""
