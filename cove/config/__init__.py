"""The daemon's configuration: one table of keys, the file, the flags. Pure but for `load.py`, which reads the file."""
