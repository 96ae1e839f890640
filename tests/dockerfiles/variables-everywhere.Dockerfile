ARG BASE=base
FROM $BASE
ENV D=/data N=8080 P=udp U=app
ADD $D/a ${D}/b
COPY --chown=$U:$U --chmod=${M:-644} $D/x ${D}y
WORKDIR $D/${N}
VOLUME $D "$D/two"
VOLUME ["$D/three", "plain"]
EXPOSE $N $N/$P
USER $U
STOPSIGNAL ${S:-9}
LABEL "k.$N"="$D" k2=$D
ENV A=$N B="${A:-$D}" C='$N'
RUN echo $N ${N}
CMD ["echo", "$N"]
ENTRYPOINT echo $N
HEALTHCHECK CMD test $N
ONBUILD ENV X=$N
SHELL ["$N"]
