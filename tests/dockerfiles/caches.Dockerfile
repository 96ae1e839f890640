FROM seedimage AS seed
FROM base
WORKDIR /w
ARG CACHE=apt
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=lib,id=${CACHE}-lib,mode=0755,uid=5,gid=6 \
    --mount=type=cache,target=/seeded,from=seed,source=/start \
    --mount=type=tmpfs,target=/tmp \
    apt-get update
