"""Volumes, writable layers, the trash, and how much disk they take."""
