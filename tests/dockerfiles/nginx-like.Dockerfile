FROM alpine:3.20 AS builder
ARG ENABLED_MODULES
SHELL ["/bin/ash", "-exo", "pipefail", "-c"]
RUN if [ "$ENABLED_MODULES" = "" ]; then echo "No additional modules enabled, exiting"; exit 1; fi
COPY ./ /modules/
RUN apk update && apk add linux-headers openssl-dev
FROM nginx:mainline-alpine
ARG ENABLED_MODULES
RUN --mount=type=bind,target=/tmp/packages/,source=/tmp/packages/,from=builder \
    for module in $ENABLED_MODULES; do apk add --no-cache /tmp/packages/nginx-module-${module}.apk; done
