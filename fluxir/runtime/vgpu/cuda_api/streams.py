"""Entry points: streams, events, graphs captured from a stream."""

from __future__ import annotations

from .entry import I32, SIZE, U32, U64, P, entry, put
from .order import Event, Graph, Stream
from .results import CudaError, Result
from .state import Context, VirtualCuda

__all__: list[str] = []

D = VirtualCuda
_RELAXED = 2  # the capture mode that lets every other call through


# ---- streams
@entry(P, U32)
def cuStreamCreate(driver: D, context: Context, out: int, flags: int) -> None:
    if flags & ~1:
        raise CudaError(Result.INVALID_VALUE)
    context.streams.append(Stream(context, flags))
    put(out, "Q", driver.add(context.streams[-1]))


@entry(P, U32, I32)
def cuStreamCreateWithPriority(driver: D, context: Context, out: int, flags: int, priority: int) -> None:
    cuStreamCreate(driver, context, out, flags)


@entry(P)
def cuStreamDestroy_v2(driver: D, context: Context, handle: int) -> None:
    stream = driver.remove(handle, Stream)
    stream.run()
    stream.context.streams.remove(stream)


@entry(P)
def cuStreamSynchronize(driver: D, context: Context, handle: int) -> None:
    stream = context.stream(handle)
    stream.not_capturing()
    stream.settle()
    stream.run()
    context.check()


@entry(P)
def cuStreamQuery(driver: D, context: Context, handle: int) -> Result:
    stream = context.stream(handle)
    stream.not_capturing()
    done = stream.progress()
    context.check()
    return Result.SUCCESS if done else Result.NOT_READY


@entry(P, P, U32)
def cuStreamWaitEvent(driver: D, context: Context, handle: int, event: int, flags: int) -> None:
    stream, waited = context.stream(handle), driver.find(event, Event)
    if stream.capture is not None:
        stream.capture.invalid = True
        raise CudaError(Result.STREAM_CAPTURE_ISOLATION)
    stream.put(waited.place())


@entry(P, U64, SIZE, U32)
def cuStreamAttachMemAsync(driver: D, context: Context, handle: int, address: int, nbytes: int, flags: int) -> None:
    """Who may see managed memory when: here everyone, always."""
    context.stream(handle)
    if driver.memory.block_of(address).kind != "managed":
        raise CudaError(Result.INVALID_VALUE, "not managed memory")


# ---- events
@entry(P, U32)
def cuEventCreate(driver: D, context: Context, out: int, flags: int) -> None:
    if flags & ~7:
        raise CudaError(Result.INVALID_VALUE)
    put(out, "Q", driver.add(Event(context, flags)))


@entry(P)
def cuEventDestroy_v2(driver: D, context: Context, handle: int) -> None:
    driver.remove(handle, Event)


@entry(P, P)
def cuEventRecord(driver: D, context: Context, handle: int, stream: int) -> None:
    driver.find(handle, Event).record(context.stream(stream))


@entry(P)
def cuEventSynchronize(driver: D, context: Context, handle: int) -> None:
    driver.find(handle, Event).wait()
    context.check()


@entry(P)
def cuEventQuery(driver: D, context: Context, handle: int) -> Result:
    event = driver.find(handle, Event)
    if not event.done and event.stream is not None:
        event.stream.progress()
        context.check()
        return Result.SUCCESS if event.done else Result.NOT_READY
    return Result.SUCCESS


@entry(P, P, P, also=("cuEventElapsedTime",))
def cuEventElapsedTime_v2(driver: D, context: Context, out: int, start: int, end: int) -> None:
    """Milliseconds, by the clock of the host that simulates."""
    a, b = driver.find(start, Event), driver.find(end, Event)
    if not (a.timed and b.timed) or a.stream is None or b.stream is None:
        raise CudaError(Result.INVALID_HANDLE, "an event that was not recorded, or that keeps no time")
    if a.time is None or b.time is None:
        raise CudaError(Result.NOT_READY)
    put(out, "f", (b.time - a.time) * 1e3)


# ---- graphs
def no_capture(context: Context) -> None:
    """What a program must not do while one of its streams captures: STREAM_CAPTURE_UNSUPPORTED, and the capture is void."""
    for s in context.streams:
        if s.capture is not None and s.capture.mode != _RELAXED:
            s.not_capturing()


@entry(P, I32)
def cuStreamBeginCapture_v2(driver: D, context: Context, handle: int, mode: int) -> None:
    stream = context.stream(handle)
    if stream is context.default:
        raise CudaError(Result.STREAM_CAPTURE_UNSUPPORTED)
    if stream.capture is not None:
        raise CudaError(Result.ILLEGAL_STATE)
    stream.capture = Graph(context, mode)


@entry(P, P)
def cuStreamEndCapture(driver: D, context: Context, handle: int, out: int) -> None:
    stream = context.stream(handle)
    graph, stream.capture = stream.capture, None
    if graph is None:
        raise CudaError(Result.ILLEGAL_STATE)
    if graph.invalid:
        put(out, "Q", 0)
        raise CudaError(Result.STREAM_CAPTURE_INVALIDATED)
    put(out, "Q", driver.add(graph))


@entry(P, P)
def cuStreamIsCapturing(driver: D, context: Context, handle: int, out: int) -> None:
    graph = context.stream(handle).capture
    put(out, "i", 0 if graph is None else 2 if graph.invalid else 1)


@entry(P, P, P)
def cuGraphGetNodes(driver: D, context: Context, handle: int, nodes: int, count: int) -> None:
    """How many nodes there are; they have no handles of their own."""
    if nodes:
        raise CudaError(Result.NOT_SUPPORTED, "the nodes of a captured graph have no handles here")
    put(count, "Q", len(driver.find(handle, Graph).nodes))


class Executable(Graph):
    """A graph that can be launched: what the graph holds when it is made."""


@entry(P, P, U64)
def cuGraphInstantiateWithFlags(driver: D, context: Context, out: int, handle: int, flags: int) -> None:
    graph = driver.find(handle, Graph)
    ready = Executable(context, graph.mode)
    ready.nodes = list(graph.nodes)
    put(out, "Q", driver.add(ready))


@entry(P, P)
def cuGraphLaunch(driver: D, context: Context, handle: int, stream: int) -> None:
    nodes = list(driver.find(handle, Executable).nodes)

    def run() -> None:
        for work in nodes:
            work()

    context.stream(stream).put(run)


@entry(P)
def cuGraphDestroy(driver: D, context: Context, handle: int) -> None:
    driver.remove(handle, Graph)


@entry(P)
def cuGraphExecDestroy(driver: D, context: Context, handle: int) -> None:
    driver.remove(handle, Executable)
