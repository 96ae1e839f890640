"""bin/cove-runtime: the OCI runtime."""
