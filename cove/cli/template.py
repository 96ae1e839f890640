"""The part of Go's text/template that --format uses: fields, functions, pipes, if, range, with, variables.

A template becomes a small tree once and is rendered for each row. Missing keys of a map print as
`<no value>`, as Go prints them; an unknown field of a table's row is an error, which names the fields
there are. Pure.
"""

from __future__ import annotations

from cove.cli.fail import CliError
from cove.model import wirejson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Node = tuple[Any, ...]

_BACKSLASH = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}


class TemplateError(CliError):
    """A template that can't be understood or applied."""

    def __init__(self, message: str) -> None:
        super().__init__(f"--format: {message}", 64)


class Missing:
    """A key that isn't there; every path below it is missing too."""

    def __bool__(self) -> bool:
        return False


MISSING = Missing()


# --- reading ------------------------------------------------------------------------------


def parse_template(text: str) -> list[Node]:
    """The tree of a template; TemplateError says where it stops making sense."""
    parts = _split(text)
    nodes, rest = _parse_block(parts, 0, ())
    if rest != len(parts):
        raise TemplateError(f"{{{{{parts[rest][1]}}}}} has no beginning")
    return nodes


def _split(text: str) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    trim_next = False
    while text:
        plain, opening, rest = text.partition("{{")
        if trim_next:
            plain = plain.lstrip()
        if opening and rest.startswith("- "):
            plain, rest = plain.rstrip(), rest[2:]
        if plain:
            parts.append(("text", plain))
        if not opening:
            break
        action, closing, text = rest.partition("}}")
        if not closing:
            raise TemplateError("a {{ has no }}, e.g. '{{.Names}}'")
        trim_next = action.endswith(" -")
        action = action.removesuffix(" -").strip()
        if not action.startswith("/*"):
            parts.append(("action", action))
    return parts


def _parse_block(
    parts: list[tuple[str, str]], position: int, ends: tuple[str, ...]
) -> tuple[list[Node], int]:
    nodes: list[Node] = []
    while position < len(parts):
        kind, text = parts[position]
        if kind == "text":
            nodes.append(("text", text))
            position += 1
            continue
        word = text.split(None, 1)[0] if text else ""
        if word in ("end", "else"):
            return nodes, position
        if word in ("if", "range", "with"):
            node, position = _parse_branch(word, text[len(word) :], parts, position + 1)
            nodes.append(node)
            continue
        nodes.append(("print", *_parse_pipe(text)))
        position += 1
    if ends:
        raise TemplateError(f"{{{{{ends[0]}}}}} has no {{{{end}}}}")
    return nodes, position


def _parse_branch(word: str, condition: str, parts: list[tuple[str, str]], position: int) -> tuple[Node, int]:
    names, pipe = _parse_pipe(condition)
    body, position = _parse_block(parts, position, (word,))
    otherwise: list[Node] = []
    if position < len(parts) and parts[position][1].startswith("else"):
        rest = parts[position][1][4:].strip()
        if rest.startswith("if"):
            node, position = _parse_branch("if", rest[2:], parts, position + 1)
            return (word, names, pipe, body, [node]), position
        otherwise, position = _parse_block(parts, position + 1, (word,))
    if position >= len(parts):
        raise TemplateError(f"{{{{{word}}}}} has no {{{{end}}}}")
    return (word, names, pipe, body, otherwise), position + 1


def _parse_pipe(text: str) -> tuple[list[str], list[list[Any]]]:
    """Variables assigned to, and the stages of a pipe, each a list of operands."""
    words = _words(text)
    names: list[str] = []
    for sign in (":=", "="):
        if ("op", sign) in words:
            at = words.index(("op", sign))
            names = [word[1] for word in words[:at] if word[0] == "variable"]
            words = words[at + 1 :]
            break
    stages, rest = _parse_stages(words, 0)
    if rest != len(words):
        raise TemplateError(f"{{{{{text}}}}}: unexpected )")
    return names, stages


def _parse_stages(words: list[tuple[Any, ...]], position: int) -> tuple[list[list[Any]], int]:
    stages: list[list[Any]] = [[]]
    while position < len(words):
        word = words[position]
        kind, value = word[0], word[1]
        position += 1
        if kind == "op" and value == "(":
            inner, position = _parse_stages(words, position)
            if position >= len(words):
                raise TemplateError("a ( has no )")
            position += 1
            operand: Any = ("pipe", inner)
            if position < len(words) and words[position][0] == "glued":
                operand = ("path", operand, words[position][1])
                position += 1
            stages[-1].append(operand)
        elif kind == "op" and value == ")" and stages[-1]:
            return stages, position - 1
        elif kind == "op" and value == "|" and stages[-1]:
            stages.append([])
        elif kind == "op":
            raise TemplateError(f"unexpected {value}")
        else:
            stages[-1].append(word)
    if not stages[-1]:
        raise TemplateError("an empty {{}}, or nothing after |; e.g. '{{.Names}}'")
    return stages, position


def _words(text: str) -> list[tuple[Any, ...]]:
    words: list[tuple[Any, ...]] = []
    position = 0
    while position < len(text):
        letter = text[position]
        if letter.isspace() or letter == ",":
            position += 1
        elif letter in "()|":
            words.append(("op", letter))
            position += 1
        elif text.startswith(":=", position):
            words.append(("op", ":="))
            position += 2
        elif letter == "=":
            words.append(("op", "="))
            position += 1
        elif letter in "\"`'":
            value, position = _string(text, position)
            words.append(("value", value))
        else:
            end = position
            while end < len(text) and not text[end].isspace() and text[end] not in "()|,=":
                end += 1
            glued = position > 0 and text[position - 1] == ")"
            words.append(_word(text[position:end], glued))
            position = end
    return words


def _string(text: str, position: int) -> tuple[str, int]:
    quote, value = text[position], ""
    position += 1
    while position < len(text):
        letter = text[position]
        position += 1
        if letter == quote:
            return value, position
        if letter == "\\" and quote != "`" and position < len(text):
            value += _BACKSLASH.get(text[position], "\\" + text[position])
            position += 1
        else:
            value += letter
    raise TemplateError(f"a {quote} has no partner")


def _word(word: str, glued: bool) -> tuple[Any, ...]:
    if word.startswith("."):
        names = [name for name in word.split(".") if name]
        return ("glued" if glued else "field", names)
    if word.startswith("$"):
        head, *names = word.split(".")
        return ("variable", head) if not names else ("path", ("variable", head), names)
    if word in ("true", "false"):
        return ("value", word == "true")
    if word in ("nil", "null"):
        return ("value", None)
    if word.lstrip("-").isdecimal():
        return ("value", int(word))
    if word.replace("_", "").isalnum():
        return ("function", word)
    raise TemplateError(f"{word}: not a field, a function or a value")


# --- applying -----------------------------------------------------------------------------


class Scope:
    """The dot and the variables at one place of a template."""

    __slots__ = ("dot", "strict", "variables")

    def __init__(self, dot: Any, variables: dict[str, Any], strict: bool) -> None:
        self.dot = dot
        self.variables = variables
        self.strict = strict  # unknown fields of the top dot are errors


def apply_template(nodes: list[Node], dot: Any, *, strict: bool = False) -> str:
    """The template's text for `dot`; `strict` makes an unknown field an error."""
    return _render(nodes, Scope(dot, {"$": dot}, strict))


def _render(nodes: list[Node], scope: Scope) -> str:
    out = []
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "print":
            value = _evaluate(node[2], scope)
            if node[1]:
                scope.variables[node[1][0]] = value
            else:
                out.append(show(value))
        elif node[0] == "range":
            out.append(_render_range(node, scope))
        else:
            _, names, pipe, body, otherwise = node
            value = _evaluate(pipe, scope)
            if names:
                scope.variables[names[0]] = value
            inside = Scope(value, scope.variables, False) if node[0] == "with" and _truth(value) else scope
            out.append(_render(body if _truth(value) else otherwise, inside))
    return "".join(out)


def _render_range(node: Node, scope: Scope) -> str:
    _, names, pipe, body, otherwise = node
    value = _evaluate(pipe, scope)
    if isinstance(value, dict):
        items = [(key, value[key]) for key in sorted(value)]
    elif isinstance(value, list):
        items = list(enumerate(value))
    elif not _truth(value):
        items = []
    else:
        raise TemplateError(f"range over {show(value)[:40]}: expected a list or a map")
    if not items:
        return _render(otherwise, scope)
    out = []
    for key, item in items:
        variables = dict(scope.variables)
        if len(names) == 2:
            variables[names[0]], variables[names[1]] = key, item
        elif names:
            variables[names[0]] = item
        out.append(_render(body, Scope(item, variables, False)))
    return "".join(out)


def _evaluate(stages: list[list[Any]], scope: Scope) -> Any:
    value: Any = MISSING
    for number, operands in enumerate(stages):
        head, *rest = operands
        piped = [value] if number else []
        if head[0] == "function":
            function = FUNCTIONS.get(head[1])
            if function is None:
                raise TemplateError(f"{head[1]}: no such function; there are {', '.join(sorted(FUNCTIONS))}")
            arguments = [_operand(operand, scope) for operand in rest] + piped
            try:
                value = function(*arguments)
            except (TypeError, IndexError, KeyError, AttributeError, ValueError) as error:
                raise TemplateError(f"{head[1]}: {error}") from None
        elif head == ("field", ["Label"]) and rest and isinstance(scope.dot, dict) and "Labels" in scope.dot:
            value = _label(scope.dot["Labels"], str(_operand(rest[0], scope)))
        elif rest or piped:
            raise TemplateError(f"{head[1]}: it isn't a function, so nothing can follow it")
        else:
            value = _operand(head, scope)
    return value


def _label(labels: Any, name: str) -> str:
    """`.Label "x"` of a row whose labels are shown as a=b,c=d."""
    pairs = (pair.partition("=") for pair in str(labels).split(","))
    return next((value for key, _, value in pairs if key == name), "")


def _operand(operand: Any, scope: Scope) -> Any:
    kind, value = operand[0], operand[1]
    if kind == "field":
        return _path(scope.dot, value, scope.strict)
    if kind == "variable":
        if value not in scope.variables:
            raise TemplateError(f"{value}: no such variable")
        return scope.variables[value]
    if kind == "path":
        return _path(_operand(value, scope), operand[2], False)
    if kind == "pipe":
        return _evaluate(value, scope)
    if kind == "function":
        return _evaluate([[operand]], scope)
    return value


def _path(value: Any, names: list[str], strict: bool) -> Any:
    for name in names:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif strict and isinstance(value, dict):
            raise TemplateError(f".{name}: no such field; there are {', '.join(sorted(value))}")
        else:
            return MISSING
        strict = False
    return value


def _truth(value: Any) -> bool:
    return bool(value)


def show(value: Any) -> str:
    """A value as Go prints it."""
    if isinstance(value, Missing) or value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + " ".join(show(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, MISSING)
        elif isinstance(value, list):
            value = value[key]
        else:
            return MISSING
    return value


def _printf(template: str, *values: Any) -> str:
    """Go's %s, %v, %d, %q with widths, through Python's own formatting."""
    shown = []
    for value in values:
        shown.append(value if isinstance(value, int | float) and not isinstance(value, bool) else show(value))
    return template.replace("%v", "%s").replace("%q", '"%s"') % tuple(shown)


def _and(*values: Any) -> Any:
    return next((value for value in values if not _truth(value)), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if _truth(value)), values[-1])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: wirejson.dumps(None if isinstance(value, Missing) else value),
    "index": _index,
    "len": len,
    "upper": lambda value: show(value).upper(),
    "lower": lambda value: show(value).lower(),
    "title": lambda value: show(value).title(),
    "join": lambda values, separator="": separator.join(show(value) for value in values),
    "split": lambda value, separator: show(value).split(separator),
    "slice": lambda value, first=0, last=None: value[first:last],
    "truncate": lambda value, length: show(value)[:length],
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
    "print": lambda *values: "".join(show(value) for value in values),
    "printf": _printf,
    "pad": lambda value, before, after: " " * before + show(value) + " " * after,
    "eq": lambda value, *others: any(value == other for other in others),
    "ne": lambda value, other: value != other,
    "lt": lambda value, other: value < other,
    "le": lambda value, other: value <= other,
    "gt": lambda value, other: value > other,
    "ge": lambda value, other: value >= other,
    "not": lambda value: not _truth(value),
    "and": _and,
    "or": _or,
}
