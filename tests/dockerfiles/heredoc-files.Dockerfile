FROM base
ARG V=1
COPY --chmod=755 <<EOF /bin/x
#!/bin/sh
echo $V ${V} \$V '$V' "$V" `date` \\ end
EOF
COPY <<a <<"b.c" <<-d file.txt /multi/
A $V
a
B $V
b.c
	D $V
	d
RUN <<-EOF
	if true; then
	  echo $V
	fi
EOF
RUN --network=none <<EOF bash -e
echo one
EOF
RUN <<EOF
EOF
RUN python3 - <<EOF && echo done
print("$V")
EOF
