"""The embedded DNS server: containers on user-defined networks find each other by name.

    client (in the daemon)  ── records, containers' sockets ──>  server  <── queries, by 127.0.0.11 ── containers
                                                                   └─ broker: opens sockets in containers' namespaces

`doors` opens a container's two sockets and leads port 53 to them; `wire` and `names` decide what a query is answered
(pure); `upstream` asks other servers. Why this is a process of its own, and no NAT is involved: decisions/0011-dns.md.
"""
