FROM busybox AS debian
RUN one
FROM debian AS debian
RUN two
FROM debian
COPY --from=debian /x /y
COPY --from=busybox /x /z
