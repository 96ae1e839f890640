FROM --platform=$BUILDPLATFORM tonistiigi/xx:1.4 AS xx
FROM --platform=$BUILDPLATFORM golang:1.22 AS build
COPY --from=xx / /
ARG TARGETPLATFORM BUILDPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDARCH TARGETSTAGE
RUN xx-go build -o /out/app . && echo "$TARGETSTAGE"
FROM --platform=linux/riscv64 debian AS other
FROM base-${TARGETARCH}${TARGETVARIANT:+-$TARGETVARIANT} AS final
COPY --from=build /out /
COPY --from=other /etc/debian_version /other
