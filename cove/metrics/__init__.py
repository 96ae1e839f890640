"""What the daemon counts, and Prometheus' text format for it."""
