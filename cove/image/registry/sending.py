"""Uploads as commands: the worker's side of a push. Blocking; `send` runs in a thread for each blob.

A blob's bytes come as a descriptor, of a file that may still grow; `Grow` says how far it is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from cove.image.registry.messages import BlobPushed, Grow, ManifestPut, PushBlob, PutManifest
from cove.image.registry.transport import Client
from cove.image.registry.uploads import Source, Upload, has_blob, mount_blob, put_manifest
from cove.model.errors import HostError

REPORT_BYTES = 512 << 10
Moved = Callable[[int, int], None]  # a command's id, bytes that are there


class Sending:
    """The uploads of one worker."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved
        self._sources: dict[int, Source] = {}
        self._lock = threading.Lock()

    def expect(self, command: PushBlob, fd: int) -> None:
        """An upload is about to begin; called before any `grow` of it. The descriptor is this object's from here."""
        with self._lock:
            self._sources[command.id] = Source(fd, command.offset, size=command.size, digest=command.digest)

    def grow(self, command: Grow) -> None:
        """More of an upload's bytes is there, or no more will come."""
        with self._lock:
            source = self._sources.get(command.id)
        if source is None:
            return  # it has ended
        if command.failed:
            source.fail(HostError("the layer could not be compressed"))
        else:
            source.grow(command.size, command.digest)

    def send(self, command: PushBlob, client: Client) -> BlobPushed:
        """Find the blob in one of its forms at the registry, or bring it there. As `Client.request`."""
        if not command.anew:
            for form in command.forms:
                if has_blob(client, form.digest):
                    return BlobPushed(id=command.id, digest=form.digest, size=form.size, how="exists")
            for form in command.forms:
                for repository in form.mounts:
                    if mount_blob(client, form.digest, repository):
                        return BlobPushed(
                            id=command.id,
                            digest=form.digest,
                            size=form.size,
                            how="mounted",
                            source=repository,
                        )
        with self._lock:
            source = self._sources.get(command.id)
        if source is None:
            return BlobPushed(id=command.id, digest="", size=0, how="missing")
        told = 0

        def moved(count: int) -> None:
            nonlocal told
            if count - told >= REPORT_BYTES or count < told:
                told = count
                self._moved(command.id, count)

        found = Upload(client, source, moved).run(
            known=any(form.digest == command.digest for form in command.forms), anew=command.anew
        )
        return BlobPushed(id=command.id, digest=found.digest, size=found.size, how=found.how)

    def end(self, command: PushBlob) -> None:
        """The command is done with: its descriptor is closed."""
        with self._lock:
            source = self._sources.pop(command.id, None)
        if source is not None:
            os.close(source.fd)


def put(command: PutManifest, client: Client) -> ManifestPut:
    """Put a manifest. As `Client.request`; Invalid: the registry lacks a blob that it names."""
    answer = put_manifest(client, command.reference, command.data, command.media_type, command.digest)
    return ManifestPut(id=command.id, subject=answer.headers.get("OCI-Subject", "")[:256])
