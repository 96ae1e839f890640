ARG REGISTRY=docker.io/library/
ARG TAG="${TAG_PREFIX:-v}12"
FROM ${REGISTRY}debian:${TAG#v} AS one
RUN echo $TAG $TAG_PREFIX
ARG TAG
ENV FROM_ARG=$TAG LATER=${FROM_ARG:-unset}
ARG FROM_ARG=argument
RUN echo $FROM_ARG
ARG HTTP_PROXY
ENV A=1 B=${A}2 C='$A' D="\$A" E=${A:+yes} F=${MISSING:-none} G=${TAG/2/3}
LABEL "com.example.${A}"="$B" quoted='single $A'
FROM one
RUN echo $TAG again
USER ${UID:-1000}:${GID:-1000}
WORKDIR /srv/$TAG
VOLUME $A /v/${A}
EXPOSE $A ${MISSING} 8${A}
STOPSIGNAL ${SIG:-SIGQUIT}
