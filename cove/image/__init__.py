"""Images and archives: references, the content store, load, save and import, unpacking, `docker cp`.

What decides is pure (references, manifests, changes, removal, tarformat); what comes from strangers is read
in a worker process of its own (sandbox, extract, unpack, archive); `images.Images` is what the engine calls,
`worker` what `docker cp` and copy-up call.
"""
