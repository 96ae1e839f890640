"""Sending lines on, in a process of its own that follows the local files.

carrier   one container's log: trail → cutter → sender
trail     the log's files from a position on, across rotations
cut       records to messages, and the position behind each
senders   connections; encode: messages to bytes
process   the program; shipper: the daemon's side of it
"""
