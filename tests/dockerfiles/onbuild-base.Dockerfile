FROM onbuild:1
RUN after
FROM onbuild:1 AS again
ONBUILD ARG WHO=me
ONBUILD RUN echo $WHO
FROM again
CMD ["x"]
