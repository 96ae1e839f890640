FROM base AS shellform
ENTRYPOINT exec top -b
CMD ignored
FROM base AS cleared
ENTRYPOINT []
CMD []
FROM shellform AS child
ENTRYPOINT ["/child"]
FROM cleared
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN a | b
CMD c "d e"
RUN ["/bin/e", "$HOME", "f g"]
