# syntax=docker/dockerfile:1-labs
# check=skip=all;error=true
FROM base
COPY --parents --exclude=**/*_test.go ./cmd/*/main.go ./internal/ /src/
ADD --exclude=*.md https://example.com/repo.git?branch=main&subdir=lib&keep-git-dir=true /lib
RUN --security=sandbox true
