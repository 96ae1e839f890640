# The way it was written in 2014.
from ubuntu:14.04
maintainer Jane Doe <jane@example.com>
env DEBIAN_FRONTEND noninteractive
run apt-get update && apt-get install -y supervisor \
    openssh-server
run mkdir -p /var/run/sshd
add supervisord.conf /etc/supervisor/conf.d/supervisord.conf
add https://example.com/files/tool.tar.gz /opt/
add site.tar.gz /var/www
volume ["/var/log", "/data"]
volume /extra
expose 22 80-82/udp
workdir opt
workdir tool
label version 1.0 beta
entrypoint exec top -b
