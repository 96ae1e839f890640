"""Push an image: every layer that its repository lacks, its configuration, and then its manifest.

Order that must hold: what a manifest names is there before the manifest is put; what was pushed goes on record after
that. Layers that are kept as they came are sent as they are; the others are looked for in the forms that were pushed
before, and only what is nowhere is compressed, while it is being sent. A push that fails or ends leaves nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cove.image.catalog import PUSHED
from cove.image.content import EMPTY_LAYER, Content
from cove.image.feed import Feed
from cove.image.manifests import LayerBlob
from cove.image.records import LayerRecord, PushedRecord, hex_of
from cove.image.references import Reference, parse_reference
from cove.image.registry import PullOptions
from cove.image.registry.compressing import Growing, compressing
from cove.image.registry.documents import digest_of
from cove.image.registry.endpoints import plan_endpoints
from cove.image.registry.fetcher import Fetcher
from cove.image.registry.messages import BlobForm, BlobPushed, ManifestPut
from cove.image.registry.pushplan import (
    LayerPlan,
    Wanted,
    choose_manifest,
    named_layers,
    plan_layer,
    remember,
)
from cove.model.errors import Forbidden, Invalid, NotFound, Unauthorized
from cove.model.objects import Image
from cove.store.interface import Put, Store

if TYPE_CHECKING:
    from cove.image.adding import Adding

PUSHES_MAX = 8  # each has a process of some 40 MiB, and those that compress
_MOUNTS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How a push goes. `target` says where and as whom, as for a pull."""

    target: PullOptions
    wanted: Wanted = field(default_factory=Wanted)
    uploads: int = 5  # layers at a time
    all_tags: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PushEvent:
    """One line of a push, in Docker's words. `id` is a layer's; `total` above 0: bytes of a layer."""

    status: str
    id: str = ""
    current: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedTag:
    """A tag is at the registry: the digest and the size of its manifest."""

    reference: str
    image_id: str
    tag: str
    digest: str
    size: int


Event = PushEvent | PushedTag
Tell = Callable[[Event], None]


class Pusher:
    """See the module. One for the images of a machine."""

    def __init__(self, images: Adding, content: Content, store: Store) -> None:
        self._images = images
        self._content = content
        self._store = store
        self._senders = asyncio.Semaphore(PUSHES_MAX)

    def push(self, reference: str, options: PushOptions) -> AsyncGenerator[Event, None]:
        """Push an image under its name, or with `all_tags` every tag of the name; the events are Docker's lines.

        Invalid comes at once; while it goes: NotFound (no such image here), Unauthorized and Forbidden (the registry
        refuses), Invalid and Unavailable (the registry), HostError.
        """
        parsed = parse_reference(reference)
        if parsed.digest:
            raise Invalid("cannot push a digest reference")
        if options.all_tags and parsed.tag:
            raise Invalid("tag can't be used with --all-tags/-a")
        feed = Feed[Event](
            lambda event: (event.id, event.status) if isinstance(event, PushEvent) and event.total else None
        )
        return feed.run(self._push(parsed, options, feed.push))

    async def _push(self, reference: Reference, options: PushOptions, tell: Tell) -> None:
        tell(PushEvent(status=f"The push refers to repository [{reference.name}]"))
        if options.all_tags:
            names = self._images.tags_of(reference)
        else:
            tagged = reference.with_default_tag()
            names = [tagged] if self._images.named(tagged) else []
        if not names:
            what = reference.familiar_name if options.all_tags else reference.with_default_tag().familiar
            raise NotFound(f"An image does not exist locally with the tag: {what}")
        async with self.sending(reference, options.target) as sender:
            for name in names:
                image = self._images.find_image(name.familiar)
                with self._images.relying(image.diff_ids):
                    await _Push(self, sender, name, image, options, tell).run()
        await self._images.collect()

    @asynccontextmanager
    async def sending(self, reference: Reference, target: PullOptions) -> AsyncGenerator[Fetcher, None]:
        """A worker that speaks with the registry itself, no mirror."""
        async with self._senders:
            endpoints = [e for e in plan_endpoints(reference.domain, target.registries) if not e.mirror]
            sender = await Fetcher.start(
                reference, target, self._content.layers / EMPTY_LAYER, endpoints=endpoints
            )
            try:
                yield sender
            finally:
                await sender.release()

    async def push_layers(
        self,
        reference: Reference,
        diff_ids: Sequence[str],
        sender: Fetcher,
        options: PushOptions,
        tell: Tell = lambda _: None,
    ) -> list[LayerBlob]:
        """Bring layers that are here into the repository of `reference`; the blobs that they are there. As `push`."""
        layers = [self._images.layer_record(diff_id) for diff_id in diff_ids]
        with self._images.relying(diff_ids):
            return await _Layers(self, sender, reference, layers, (), options, tell).push(anew=False)

    async def push_document(self, data: bytes, sender: Fetcher, *, anew: bool = False) -> BlobPushed:
        """Bring a small blob into the repository."""
        digest = digest_of(data)
        fd = os.memfd_create("blob", os.MFD_CLOEXEC)
        try:
            await asyncio.to_thread(_write_all, fd, data)
            return await sender.push_blob(
                (BlobForm(digest=digest, size=len(data)),), fd=fd, digest=digest, size=len(data), anew=anew
            )
        finally:
            os.close(fd)

    # --- what was pushed ----------------------------------------------------------------------

    async def pushed(self, diff_id: str) -> PushedRecord | None:
        """What is known of a layer at registries."""
        found = await self._store.get(PUSHED + hex_of(diff_id))
        if found is None:
            return None
        try:
            return msgspec.json.decode(found.value, type=PushedRecord)
        except msgspec.MsgspecError:
            return None  # of another release: it only saves work

    async def note(self, pushed: Sequence[tuple[LayerRecord, LayerBlob, int]], repository: str) -> None:
        """Put on record that layers are in a repository, in this form (made with this level)."""
        operations = {}
        for layer, blob, level in pushed:
            old = await self.pushed(layer.diff_id)
            new = remember(old, layer.diff_id, blob, level, repository)
            if new != old:
                operations[PUSHED + hex_of(layer.diff_id)] = msgspec.json.encode(new)
        if operations:
            await self._store.txn([], [Put(key, value) for key, value in operations.items()])

    def came_from(self, diff_id: str) -> list[str]:
        """Full names of repositories that images with this layer were pulled from or pushed to."""
        return [
            parse_reference(name).name
            for image in self._images.images_with(diff_id)
            for name in image.repo_digests
        ]

    @property
    def content(self) -> Content:
        return self._content

    @property
    def images(self) -> Adding:
        return self._images


class _Layers:
    """Layers on their way into one repository."""

    def __init__(
        self,
        pusher: Pusher,
        sender: Fetcher,
        target: Reference,
        layers: Sequence[LayerRecord],
        named: Sequence[LayerBlob],
        options: PushOptions,
        tell: Tell,
    ) -> None:
        self._pusher = pusher
        self._sender = sender
        self._target = target
        self._layers = layers
        self._named = named if len(named) == len(layers) else [None] * len(layers)
        self._options = options
        self._tell = tell
        self._places = asyncio.Semaphore(options.uploads)
        self._done: dict[str, tuple[LayerBlob, int]] = {}  # by diff id: what it is there, and its level

    async def push(self, *, anew: bool) -> list[LayerBlob]:
        """All of them, the topmost first, as Docker does. `anew`: whatever the registry says is there already."""
        plans: dict[str, LayerPlan] = {}
        for layer, named in reversed(list(zip(self._layers, self._named, strict=True))):
            if layer.diff_id not in plans:
                plans[layer.diff_id] = await self._plan(layer, named)
                self._say(layer, "Preparing")
        for later in list(plans.values())[self._options.uploads :]:
            self._say(later.layer, "Waiting")
        try:
            kept = [plan for plan in plans.values() if any(form.kept for form in plan.forms)]
            looked = [plan for plan in plans.values() if plan not in kept]
            async with _all() as group:
                for plan in kept:
                    group(self._send_kept(plan, anew=anew))
                missing = {
                    plan.layer.diff_id: plan.layer for plan in looked if anew or not await self._find(plan)
                }
                content, reserve = self._pusher.content, self._pusher.images.limits.reserve_bytes
                async with (
                    compressing(
                        content, missing, self._options.wanted, lambda: content.free_bytes() - reserve
                    ) as growing,
                    _all() as inner,
                ):
                    for diff_id, layer in missing.items():
                        inner(self._send_growing(layer, growing[diff_id], anew=anew))
        finally:
            noted = [
                (layer, *self._done[layer.diff_id]) for layer in self._layers if layer.diff_id in self._done
            ]
            await self._pusher.note(noted, self._target.name)
        return [self._done[layer.diff_id][0] for layer in self._layers]

    async def _plan(self, layer: LayerRecord, named: LayerBlob | None) -> LayerPlan:
        pushed = await self._pusher.pushed(layer.diff_id)
        also = self._pusher.came_from(layer.diff_id)
        return plan_layer(layer, named, pushed, self._options.wanted, self._target, also)

    async def _find(self, plan: LayerPlan) -> bool:
        """Whether a layer is at the registry in one of its forms, or could be mounted."""
        if not plan.forms:
            return False
        async with self._places:
            found = await self._sender.push_blob(_forms(plan))
        if found.how == "missing":
            return False
        self._finish(plan.layer, found, plan)
        return True

    async def _send_kept(self, plan: LayerPlan, *, anew: bool) -> None:
        form = next(form for form in plan.forms if form.kept)
        async with self._places:
            fd = await asyncio.to_thread(self._pusher.content.open_blob, form.blob.digest)
            try:
                found = await self._sender.push_blob(
                    _forms(plan),
                    fd=fd,
                    digest=form.blob.digest,
                    size=form.blob.size,
                    anew=anew,
                    moved=lambda current: self._say(plan.layer, "Pushing", current, form.blob.size),
                )
            finally:
                os.close(fd)
        self._finish(plan.layer, found, plan)

    async def _send_growing(self, layer: LayerRecord, growing: Growing, *, anew: bool) -> None:
        total = layer.blob_bytes

        async def sizes() -> AsyncGenerator[tuple[int, str], None]:
            nonlocal total
            async with aclosing(growing.sizes()) as found:
                async for size, digest in found:
                    total = size if digest else max(total, size)
                    yield size, digest

        async with self._places, aclosing(sizes()) as grown:
            first = await anext(grown)  # where it begins in the file is known from here on
            found = await self._sender.push_blob(
                (),
                fd=growing.fd,
                offset=growing.offset,
                size=first[0],
                digest=first[1],
                grown=grown,
                anew=anew,
                moved=lambda current: self._say(layer, "Pushing", current, max(total, current)),
            )
        self._finish(layer, found, None)

    def _finish(self, layer: LayerRecord, found: BlobPushed, plan: LayerPlan | None) -> None:
        wanted = self._options.wanted
        form = next((f for f in plan.forms if f.blob.digest == found.digest), None) if plan else None
        compression = form.blob.compression if form else wanted.compression
        blob = LayerBlob(digest=found.digest, size=found.size, compression=compression)
        self._done[layer.diff_id] = blob, form.level if form else wanted.level
        status = {"exists": "Layer already exists", "mounted": f"Mounted from {found.source}"}
        self._say(layer, status.get(found.how, "Pushed"))

    def _say(self, layer: LayerRecord, status: str, current: int = 0, total: int = 0) -> None:
        self._tell(PushEvent(status=status, id=hex_of(layer.diff_id)[:12], current=current, total=total))


class _Push:
    """One image on its way to one tag."""

    def __init__(
        self, pusher: Pusher, sender: Fetcher, name: Reference, image: Image, options: PushOptions, tell: Tell
    ) -> None:
        self._pusher = pusher
        self._sender = sender
        self._name = name
        self._image = image
        self._options = options
        self._tell = tell

    async def run(self) -> None:
        with _access(self._name):
            try:
                await self._run(anew=False)
            except Invalid as error:
                if "blob unknown" not in str(error):
                    raise
                await self._run(anew=True)  # the registry says of a blob that it is there, and it isn't

    async def _run(self, *, anew: bool) -> None:
        images = self._pusher.images
        config = await asyncio.to_thread(images.raw_config, self._image)
        came = await asyncio.to_thread(images.manifest_for, self._image, self._name)
        came_type, named = named_layers(came)
        layers = [images.layer_record(diff_id) for diff_id in self._image.diff_ids]
        work = _Layers(self._pusher, self._sender, self._name, layers, named, self._options, self._tell)
        blobs = await work.push(anew=anew)
        await self._pusher.push_document(config, self._sender, anew=anew)
        data, media_type = choose_manifest(
            came,
            [blob.digest for blob in named],
            came_type,
            (self._image.id, len(config)),
            blobs,
            self._options.wanted,
        )
        digest = digest_of(data)
        await self._sender.put_manifest(self._name.tag, data, media_type, digest)
        with contextlib.suppress(
            NotFound
        ):  # the image was removed meanwhile, and is at the registry all the same
            await images.note_digest(self._image.id, f"{self._name.familiar_name}@{digest}", data)
        self._tell(
            PushedTag(
                reference=self._name.familiar,
                image_id=self._image.id,
                tag=self._name.tag,
                digest=digest,
                size=len(data),
            )
        )


@asynccontextmanager
async def _all() -> AsyncGenerator[Callable[[Coroutine[Any, Any, None]], object], None]:
    """Tasks that end together: the first failure of one ends the others, and is the block's."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group.create_task
    except BaseExceptionGroup as failures:
        error: BaseException = failures
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class _access:  # noqa: N801
    """Say what a registry refuses in Docker's words."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Unauthorized):
            raise Unauthorized(f"{error}; log in with 'docker login' or 'cove login'") from error
        if isinstance(error, Forbidden):
            reason = str(error)
            raise Forbidden(
                f"denied: {reason.removeprefix('denied: ')} ({self._reference.familiar_name})"
            ) from error


def _forms(plan: LayerPlan) -> tuple[BlobForm, ...]:
    return tuple(
        BlobForm(digest=form.blob.digest, size=form.blob.size, mounts=form.repositories[:_MOUNTS_MAX])
        for form in plan.forms
    )


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


__all__ = ["Event", "ManifestPut", "PushEvent", "PushOptions", "PushedTag", "Pusher"]
