"""Pull an image: its manifest, its configuration, and the layers that aren't here; then all of it on record at once.

Order that must hold: everything that names content is verified before that content is asked for; a check (signatures)
before any layer; every layer before the image. A pull that fails or ends leaves no image, and of layers only what
images/partial keeps for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cove.image import manifests
from cove.image.content import EMPTY_LAYER, Content
from cove.image.feed import Feed
from cove.image.jobs import Member
from cove.image.manifests import FoundImage
from cove.image.references import Reference, parse_reference
from cove.image.registry import PullEvent, PullOptions
from cove.image.registry.arrivals import Arrivals
from cove.image.registry.documents import (
    ACCEPT,
    INDEX_DEPTH_MAX,
    Descriptor,
    ImageManifest,
    Index,
    Platform,
    check_digest,
    choose_manifest,
    digest_of,
    normal_architecture,
    parse_manifest,
    parse_platform,
    parse_tags,
)
from cove.image.registry.fetcher import Fetcher
from cove.model.errors import Forbidden, Invalid, NotFound, Unauthorized
from cove.model.objects import Image

if TYPE_CHECKING:
    from cove.image.adding import Adding

FETCHERS_MAX = 16  # each is a process of some 40 MiB
TAGS_MAX = 10_000
Push = Callable[[PullEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference leads to: the manifest of one platform, and the documents on the way, the manifest last."""

    digest: str  # of the first document: what the repository calls the image
    media_type: str  # of the first document
    manifest: ImageManifest
    documents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributed:
    """What a registry has under a name."""

    digest: str
    media_type: str
    size: int
    platforms: tuple[Platform, ...]


class Puller:
    """See the module. One for the images of a machine."""

    def __init__(self, images: Adding, content: Content, arrivals: Arrivals) -> None:
        self._images = images
        self._content = content
        self._arrivals = arrivals
        self._fetchers = asyncio.Semaphore(FETCHERS_MAX)

    def pull(self, reference: str, options: PullOptions) -> AsyncGenerator[PullEvent, None]:
        """Pull an image, or with `all_tags` all of a repository; the events are Docker's lines.

        Invalid comes at once; while it goes: NotFound (also for what may not be seen), Unauthorized, Forbidden (the
        check refused), Invalid (the registry's content), Unavailable, HostError.
        """
        parsed = parse_reference(reference)
        if options.all_tags and (parsed.tag or parsed.digest):
            raise Invalid("tag can't be used with --all-tags/-a")
        feed = Feed[PullEvent](lambda event: (event.id, event.status) if event.total else None)
        return feed.run(self._pull(parsed, options, feed.push))

    @asynccontextmanager
    async def fetching(self, reference: Reference, options: PullOptions) -> AsyncGenerator[Fetcher, None]:
        """A worker for the repository of a reference."""
        async with self._fetchers:
            empty = self._content.layers / EMPTY_LAYER
            fetcher = await Fetcher.start(reference, options, empty)
            try:
                yield fetcher
            finally:
                await fetcher.release()

    async def _pull(self, reference: Reference, options: PullOptions, push: Push) -> None:
        async with self.fetching(reference, options) as fetcher:
            if not options.all_tags:
                await self._pull_one(reference.with_default_tag(), options, fetcher, push)
                return
            with _access(reference):
                tags = parse_tags(await fetcher.get("tags/list?n=1000", limit=4 << 20))
            if len(tags) > TAGS_MAX:
                raise Invalid(f"{reference.familiar} has {len(tags)} tags; the limit is {TAGS_MAX}")
            for tag in sorted(tags):
                await self._pull_one(parse_reference(f"{reference.name}:{tag}"), options, fetcher, push)

    async def distribution(self, reference: str, options: PullOptions) -> Distributed:
        """What the registry has under a name, without pulling it. As `pull`."""
        parsed = parse_reference(reference).with_default_tag()
        async with self.fetching(parsed, options) as fetcher:
            document, found = await self._first(parsed, fetcher)
            if isinstance(found, Index):
                platforms = [d.platform for d in found.manifests if d.platform is not None]
            else:
                config = await self._config(found, fetcher)
                image = manifests.parse_config(config, found.config.digest, self._images.limits)
                platforms = [Platform(os=image.os, architecture=image.architecture, variant=image.variant)]
            return Distributed(
                digest=digest_of(document),
                media_type=found.media_type,
                size=len(document),
                platforms=tuple(platforms),
            )

    async def resolve(self, reference: Reference, platform: Platform, fetcher: Fetcher) -> Resolved:
        """The manifest that a reference leads to. As `pull`."""
        data, found = await self._first(reference, fetcher)
        documents = [data]
        media_type = found.media_type
        while isinstance(found, Index):
            if len(documents) > INDEX_DEPTH_MAX:
                raise Invalid(
                    f"the indexes of {reference.familiar} nest deeper than {INDEX_DEPTH_MAX} levels"
                )
            found = await self._below(found, platform, fetcher, documents)
        return Resolved(
            digest=digest_of(data), media_type=media_type, manifest=found, documents=tuple(documents)
        )

    async def _first(self, reference: Reference, fetcher: Fetcher) -> tuple[bytes, Index | ImageManifest]:
        with _access(reference):
            document = await fetcher.document(
                f"manifests/{reference.digest or reference.tag}",
                accept=ACCEPT,
                limit=self._images.limits.manifest_bytes,
            )
        digest = digest_of(document.data)
        if reference.digest:
            check_digest(document.data, reference.digest, -1, "manifest")
        elif document.digest.startswith("sha256:") and document.digest != digest:
            raise Invalid(
                f"the registry says that the manifest is {document.digest}, and its digest is {digest}"
            )
        return document.data, parse_manifest(document.data, document.media_type, self._images.limits)

    async def _below(
        self, index: Index, platform: Platform, fetcher: Fetcher, documents: list[bytes]
    ) -> Index | ImageManifest:
        chosen = choose_manifest(index, platform)
        limit = self._images.limits.manifest_bytes
        if chosen.size > limit:
            raise Invalid(f"manifest {chosen.digest} has {chosen.size} bytes; the limit is {limit}")
        document = await fetcher.document(f"manifests/{chosen.digest}", accept=ACCEPT, limit=limit)
        check_digest(document.data, chosen.digest, chosen.size, "manifest")
        documents.append(document.data)
        found = parse_manifest(document.data, document.media_type or chosen.media_type, self._images.limits)
        if found.media_type != chosen.media_type:
            raise Invalid(
                f"manifest {chosen.digest} is of the type {found.media_type} "
                f"and not {chosen.media_type}, as its index says"
            )
        return found

    async def _pull_one(
        self, reference: Reference, options: PullOptions, fetcher: Fetcher, push: Push
    ) -> None:
        platform = parse_platform(options.platform, self._images.architecture)
        resolved = await self.resolve(reference, platform, fetcher)
        push(PullEvent(status=f"Pulling from {reference.path}", id=reference.digest or reference.tag))
        manifest = resolved.manifest
        if options.check is not None:
            index = resolved.digest if len(resolved.documents) > 1 else ""
            await options.check(reference, manifest.digest, resolved.documents[-1], index, fetcher)
        config = await self._config(manifest, fetcher)
        image = manifests.parse_config(config, manifest.config.digest, self._images.limits)
        _check_platform(image, platform, reference, wanted=bool(options.platform))
        if len(image.diff_ids) != len(manifest.layers):
            raise Invalid(
                f"image {image.id} has {len(image.diff_ids)} layers by its configuration "
                f"and {len(manifest.layers)} by its manifest"
            )
        before = self._images.named(reference)
        async with AsyncExitStack() as stack:
            known = [diff_id for diff_id in image.diff_ids if self._images.has_layer(diff_id)]
            stack.enter_context(self._images.pulling(known))
            members, places = await self._layers(manifest, image, fetcher, options, push, stack)
            found = FoundImage(
                image=image,
                config=config,
                manifest=resolved.documents[-1],
                manifest_layers=tuple(layer.digest for layer in manifest.layers),
                layers=tuple(members),
                names=() if reference.digest else (reference,),
            )
            await self._images.add_pulled(
                found, f"{reference.familiar_name}@{resolved.digest}", resolved.documents, places
            )
        newer = before != image.id
        push(PullEvent(status=f"Digest: {resolved.digest}"))
        what = "Downloaded newer image for" if newer else "Image is up to date for"
        push(PullEvent(status=f"Status: {what} {reference.familiar}"))

    async def _config(self, manifest: ImageManifest, fetcher: Fetcher) -> bytes:
        config = manifest.config
        if (here := await self._images.find_config(config.digest)) is not None:
            return here
        data = await fetcher.get(f"blobs/{config.digest}", limit=max(config.size, 1))
        check_digest(data, config.digest, config.size, "configuration")
        return data

    async def _layers(
        self,
        manifest: ImageManifest,
        image: Image,
        fetcher: Fetcher,
        options: PullOptions,
        push: Push,
        stack: AsyncExitStack,
    ) -> tuple[list[Member], dict[str, Path]]:
        """Have all layers here; those that come are kept by `stack`."""
        members: list[Member] = []
        places: dict[str, Path] = {}
        waiting: list[asyncio.Task[tuple[Member, Path]]] = []
        first = True
        wanted: dict[str, asyncio.Task[tuple[Member, Path]]] = {}
        try:
            for layer, diff_id in zip(manifest.layers, image.diff_ids, strict=True):
                short = layer.digest[7:19]
                if self._images.has_layer(diff_id):
                    push(PullEvent(status="Already exists", id=short))
                elif diff_id not in wanted:
                    push(PullEvent(status="Pulling fs layer", id=short))
                    if not first:
                        push(PullEvent(status="Waiting", id=short))
                    first = False
                    task = asyncio.ensure_future(self._arrive(layer, diff_id, fetcher, options, push, stack))
                    wanted[diff_id] = task
                    waiting.append(task)
            if waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            for layer, diff_id in zip(manifest.layers, image.diff_ids, strict=True):
                if diff_id in wanted:
                    member, places[diff_id] = wanted[diff_id].result()
                else:
                    member = Member(name=layer.digest, digest=layer.digest, diff_id=diff_id, known=True)
                members.append(member)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return members, places

    async def _arrive(
        self,
        layer: Descriptor,
        diff_id: str,
        fetcher: Fetcher,
        options: PullOptions,
        push: Push,
        stack: AsyncExitStack,
    ) -> tuple[Member, Path]:
        short = layer.digest[7:19]

        def report(current: int) -> None:
            push(PullEvent(status="Downloading", id=short, current=current, total=layer.size))

        # Left by the stack: the layer stays until the image is on record.
        arrived = await stack.enter_async_context(
            self._arrivals.layer(layer, fetcher, options.downloads, report)
        )
        if arrived.member.diff_id != diff_id:
            self._content.drop_partial(layer.digest)
            raise Invalid(
                f"invalid diffID for layer {short}: expected {diff_id}, got {arrived.member.diff_id}"
            )
        push(PullEvent(status="Verifying Checksum", id=short))
        push(PullEvent(status="Download complete", id=short))
        push(PullEvent(status="Extracting", id=short, current=layer.size, total=layer.size))
        push(PullEvent(status="Pull complete", id=short))
        return arrived.member, arrived.staging


class _access:  # noqa: N801
    """Say what a registry refuses in Docker's words: what isn't there, and what may not be seen."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        reference = self._reference
        if isinstance(error, Unauthorized | Forbidden):
            reason = str(error) if str(error).startswith("denied") else f"denied: {error}"
            raise NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {reason}"
            ) from error
        if isinstance(error, NotFound):
            raise NotFound(f"manifest for {reference.familiar} not found: {error}") from error


def _check_platform(image: Image, platform: Platform, reference: Reference, *, wanted: bool) -> None:
    """An index has its platforms; of a single manifest the configuration says what it is for."""
    actual = normal_architecture(image.architecture)
    if wanted and actual and actual != platform.architecture:
        raise NotFound(
            f"image with reference {reference.familiar} was found but does not match the specified platform: "
            f"wanted {platform}, actual: {image.os}/{image.architecture}"
        )
