FROM base
ADD rootfs.tar.xz /
ADD --unpack=false rootfs.tar.xz /keep/
ADD --unpack=true https://example.com/a.tgz?x=1 /opt/a/
ADD http://example.com/ /index
ADD local.tar https://example.com/remote.tar /mixed/
ADD --checksum=24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d https://example.com/r.git /src
ADD --chown=1:1 --chmod=600 --link https://example.com/key /key
ADD ["with space", "/to here/"]
