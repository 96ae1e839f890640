# syntax=docker/dockerfile:1.4
FROM debian:12
ARG NAME=world
RUN <<EOF
apt-get update
apt-get install -y hello
EOF
RUN <<'SCRIPT'
#!/usr/bin/env python3
print("hello $NAME")
SCRIPT
RUN cat <<A >/a && cat <<-"B" >/b
a $NAME
A
	b $NAME
	B
COPY <<EOF <<-'RAW' /etc/greeting/
hello ${NAME:-nobody}, \$5
EOF
	raw ${NAME}
	RAW
ADD --chmod=u=rwx,go=rx <<run.sh /usr/local/bin/run
#!/bin/sh
exec hello "$@"
run.sh
ONBUILD COPY <<EOF /child
made for the child
EOF
