"""The benchmark: Cove beside dockerd, runc and the kernel's floor, interleaved in one run."""
