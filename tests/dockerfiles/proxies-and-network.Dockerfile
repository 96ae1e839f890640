FROM base
RUN curl http://example.com
RUN --network=none make test
RUN --network=host make integration
RUN --security=insecure mount -t tmpfs none /mnt
ARG no_proxy
RUN env
