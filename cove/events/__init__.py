"""The event bus and Docker's event filters."""
