FROM alpine AS fetch
RUN --mount=type=cache,target=/dl wget -O /dl/x https://example.com/x
FROM fetch AS lint
RUN lint
FROM fetch AS unit
RUN unit
FROM fetch AS e2e
RUN e2e
FROM scratch AS reports
COPY --from=lint /report /lint
COPY --from=unit /report /unit
COPY --from=e2e /report /e2e
