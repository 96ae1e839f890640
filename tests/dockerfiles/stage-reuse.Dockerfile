FROM base AS a
RUN a
FROM a AS b
RUN b
FROM a AS c
RUN c
FROM b AS d
COPY --from=c /c /c
COPY --from=1 /b /b
RUN --mount=from=c,target=/c --mount=from=a,source=/a,target=/a d
FROM unused AS e
RUN e
FROM d
