"""TLS beside the daemon and the command line: a relay between an encrypted and a plain socket."""
