"""The stream of Docker's classic builder, from a build's events. Pure.

Instructions are shown one after the other, in the Dockerfile's order: of the one whose turn it is everything at once,
of those that run beside it when their turn comes (up to a bound). What isn't a step of its own is done when it is
shown. The words are dockerd's (moby, builder/dockerfile; pkg/streamformatter).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cove.build.events import BuildEvent, ImageBuilt, StepDone, StepOutput, StepStarted
from cove.build.graph import Exec, Graph

Json = dict[str, Any]
HELD_BYTES = 2 << 20  # of the output of a step whose turn it isn't yet; as much as BuildKit keeps


@dataclass(slots=True)
class _Step:
    run: str = ""
    output: list[Json] = field(default_factory=list)
    held_bytes: int = 0
    clipped: bool = False
    done: StepDone | None = None


class ClassicStream:
    """One build's stream: feed it events, send what it gives."""

    def __init__(self, graph: Graph, *, remove: bool = True) -> None:
        self._graph = graph
        self._remove = remove
        self._steps = [_Step() for _ in graph.steps]
        self._line = 0  # whose turn it is
        self._told = False  # its first line is out
        self._shown = ""  # what the last line came to

    def begin(self) -> Iterator[Json]:
        yield from self._go_on()

    def feed(self, event: BuildEvent) -> Iterator[Json]:
        """What an event adds."""
        match event:
            case StepStarted(step=number, run=run):
                self._steps[number].run = run or self._steps[number].run
                if run and number == self._current():
                    yield _text(f" ---> Running in {run[:12]}\n")
            case StepOutput(step=number):
                message = _output(event)
                if number == self._current():
                    yield message
                else:
                    self._hold(self._steps[number], message, len(event.data))
            case StepDone(step=number):
                self._steps[number].done = event
                yield from self._go_on()
            case ImageBuilt(image_id=image_id, names=names):
                yield {"aux": {"ID": image_id}}
                yield _text(f"Successfully built {image_id.removeprefix('sha256:')[:12]}\n")
                for name in names:
                    yield _text(f"Successfully tagged {name}\n")
            case _:
                yield _text(f"{event.text}\n")

    def failed(self, number: int) -> Iterator[Json]:
        """What is still to be shown when a step fails: its own line and output, though it wasn't its turn."""
        while self._line < len(self._graph.lines) and self._current() != number:
            line = self._graph.lines[self._line]
            step = self._steps[line.step] if line.step is not None else None
            if not self._told:
                yield from self._head()
            if step is not None and step.done is None:
                yield from self._held(step)
            self._line += 1
            self._told = False
            if self._line < len(self._graph.lines):
                yield from self._head()
                if (now := self._current()) is not None:
                    yield from self._held(self._steps[now])

    def _current(self) -> int | None:
        if self._line >= len(self._graph.lines):
            return None
        return self._graph.lines[self._line].step

    def _hold(self, step: _Step, message: Json, size: int) -> None:
        step.held_bytes += size
        if step.held_bytes <= HELD_BYTES:
            step.output.append(message)
        elif not step.clipped:
            step.clipped = True
            step.output.append(_text(f"\n[output clipped, {HELD_BYTES >> 20} MiB are kept]\n"))

    def _go_on(self) -> Iterator[Json]:
        lines = self._graph.lines
        while self._line < len(lines):
            line = lines[self._line]
            if not self._told:
                yield from self._head()
                if line.step is not None:
                    yield from self._held(self._steps[line.step])
            if line.step is not None:
                step = self._steps[line.step]
                if step.done is None:
                    return
                yield from self._end(line.step, step, step.done)
            elif self._shown:
                yield _text(f" ---> {self._shown[:12]}\n")
            self._line += 1
            self._told = False

    def _head(self) -> Iterator[Json]:
        self._told = True
        line = self._graph.lines[self._line]
        yield _text(f"Step {self._line + 1}/{len(self._graph.lines)} : {line.text}")
        yield _text("\n")

    def _held(self, step: _Step) -> Iterator[Json]:
        if step.run:
            yield _text(f" ---> Running in {step.run[:12]}\n")
        yield from step.output
        step.output.clear()

    def _end(self, number: int, step: _Step, done: StepDone) -> Iterator[Json]:
        source = not self._graph.steps[number].inputs()
        if done.cached and not source:
            yield _text(" ---> Using cache\n")
        elif step.run and self._remove and isinstance(self._graph.steps[number].operation, Exec):
            yield _text(f"Removing intermediate container {step.run[:12]}\n")
        self._shown = done.shown
        yield _text(f" ---> {done.shown[:12]}\n")


def _output(event: StepOutput) -> Json:
    text = event.data.decode("utf-8", "replace")
    return _text(f"\x1b[91m{text}\x1b[0m" if event.stream == 2 else text)


def _text(text: str) -> Json:
    return {"stream": text}
