"""Names of log files. It imports nothing: so does the program that packs them, and starts the sooner."""


def number_of(entry: str, name: str) -> int | None:
    """The number of a file by its name: 0 is the one being written; None: it isn't one of the log's."""
    if entry == name:
        return 0
    number = entry.removeprefix(name + ".")
    if number != entry and number.isascii() and number.isdecimal() and len(number) < 6:
        return int(number)
    return None
