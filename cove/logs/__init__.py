"""The reading side of log drivers; cove-init writes."""
