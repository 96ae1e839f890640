"""Registries: where to ask, who one is, one HTTP exchange, what the documents say, pulling.

`endpoints`, `auth` (but for `Authorizer`) and `documents` are pure. `transport` speaks HTTP; it and `fetch` run in a
worker process only, since registries are strangers. `pull` runs in the daemon and moves no byte of a layer itself.
"""
