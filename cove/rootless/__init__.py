"""The daemon of an ordinary user: the namespaces around it, and what stays outside of them."""
