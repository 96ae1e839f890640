"""`cove registry serve`: a registry of the OCI distribution specification, in a process of its own."""
