FROM alpine:3 AS assets
COPY --link --chmod=644 static/ /static/
ADD --checksum=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef https://example.com/logo.png /static/img/
ADD --keep-git-dir=true https://git.example.com/team/theme.git#v1.2:dist /static/theme
ADD git@git.example.com:team/private.git?branch=main&subdir=docs /docs
COPY --parents ./a/./b/*.txt /x/
FROM nginx:1
WORKDIR /work
COPY --from=assets --link /static /usr/share/nginx/html
COPY --from=busybox:musl /bin/busybox /bin/busybox
COPY --from=shared . /shared/
RUN --mount=type=bind,from=assets,source=/static,target=/mnt,rw \
    --mount=type=bind,target=.,source=conf \
    --mount=type=tmpfs,target=/tmp,size=64m \
    --mount=type=secret,id=token,env=TOKEN \
    --network=none nginx -t
