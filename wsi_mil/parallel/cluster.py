"""Slides on a Dask cluster: each worker has one slide per slot, and nothing waits at a worker.

Comes in: a picklable function and tasks; the address of a scheduler, or word to start one here. Goes out: an
``Outcome`` per slide, as they end. It, ``local`` and ``worker`` alone import Dask.

Which slide goes where is this module's own (``board``): Dask's scheduler would hand slides out ahead, blame
those that merely waited for the death of their worker, and retry as often as *its* settings say. What it is
here for is what it does well: to know which workers there are and which have died, to carry tasks to them and
results back, and to show all that.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker

import wsi_mil
from wsi_mil.config import ClusterConfig
from wsi_mil.errors import ClusterError
from wsi_mil.parallel.board import Board, Seat
from wsi_mil.parallel.local import local_scheduler
from wsi_mil.parallel.outcome import Outcome, Task, Work
from wsi_mil.parallel.places import Place
from wsi_mil.parallel.progress import Watch, console
from wsi_mil.parallel.shared import absolute, beacon_in, wait_for
from wsi_mil.parallel.worker import about, at_work, work_on

_LOOK_S = 1.0  # how often workers are looked for
_GLANCE_S = 0.2  # how often all else is
_SILENT_S = 30.0  # a scheduler that says nothing for so long is lost
_CONNECT_S = 10.0
_STILL_BORN = 4  # workers that die before their first slide while no other is at work
_CLOSING = (AttributeError, CancelledError, NameError, RuntimeError)  # by Dask while the client is closed
_RESUME = "What is done is kept: give the command again to go on."

_told: set[str] = set()  # schedulers whose dashboard was said


def on_cluster(
    function: Work[Task],
    tasks: Mapping[str, Task],
    title: str,
    place: Place,
    watch: Watch,
) -> Iterator[Outcome]:
    """Yield what became of each slide; they are begun in the order of ``tasks``.

    Raises:
        ClusterError: there is no scheduler, it died, or no worker came or can be used.
    """
    assert place.cluster is not None
    with ExitStack() as stack:
        beacon = stack.enter_context(beacon_in(place.shared)) if place.shared else None
        client = stack.enter_context(_client(place.cluster, place.workers))
        work = _Work(client, function, tasks, title, place, watch, beacon)
        stack.callback(work.close)
        yield from work.run()


@contextmanager
def _client(config: ClusterConfig, workers: int) -> Iterator[Client]:
    for name in ("distributed.client", "distributed.batched"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they would say is said here
    with ExitStack() as stack:
        if config.dask == "local":
            address: dict[str, Any] = {"address": stack.enter_context(local_scheduler(workers))}
        elif config.scheduler_file is not None:
            wait_for(config.scheduler_file, config.worker_wait)
            address = {"scheduler_file": str(config.scheduler_file)}
        else:
            address = {"address": config.scheduler}
        where = next(iter(address.values()))
        try:
            client = Client(**address, timeout=_CONNECT_S, set_as_default=False, name="wsi-mil")
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"{where}: no Dask scheduler answers there ({error or type(error).__name__}); start one with "
                "`dask scheduler` and workers with `dask worker ADDRESS`, or leave the cluster out."
            ) from error
        stack.callback(client.close, timeout=5)
        if where not in _told:
            _told.add(str(where))
            console.print(f"Dask: {client.scheduler_info()['address']}, {_dashboard(client)}", markup=False)
        yield client


def _dashboard(client: Client) -> str:
    """Say where the scheduler's pages are, or why there are none: the link is there without bokeh, too."""
    # A function that every Python has: the scheduler needs no wsi-mil.
    if client.run_on_scheduler(importlib.util.find_spec, "bokeh") is None:
        return "no dashboard (it has no bokeh: `pip install 'dask[diagnostics]'` where the scheduler runs)"
    return f"dashboard {client.dashboard_link}"


class _Work:
    """The slides of one call on their way through the cluster."""

    def __init__(
        self,
        client: Client,
        function: Work[Any],
        tasks: Mapping[str, Any],
        title: str,
        place: Place,
        watch: Watch,
        beacon: Path | None,
    ) -> None:
        assert place.cluster is not None
        self._client, self._function, self._tasks, self._title = client, function, tasks, title
        self._place, self._watch, self._beacon = place, watch, beacon
        self._prepare = pickle.dumps(absolute(place.prepare)) if place.prepare else None
        self._wait_s = place.cluster.worker_wait
        self._address: str = client.scheduler_info()["address"]
        self._board = Board(tasks)
        self._futures: dict[str, Future[Any]] = {}
        self._greeted: dict[str, Future[Any]] = {}
        self._refused: dict[str, str] = {}
        self._paused: set[str] = set()
        self._infos: Mapping[str, Mapping[str, Any]] = {}
        self._events: queue.SimpleQueue[Callable[[], Iterator[Outcome]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._topic = f"wsi-mil-{uuid.uuid4().hex}"
        self._glanced = 0.0
        self._still_born = 0
        self._finished: dict[Any, float] = {}
        self._heard = self._staffed = time.monotonic()
        self._said_waiting = False
        threading.Thread(target=self._look, name="cluster", daemon=True).start()

    def close(self) -> None:
        """Let the cluster forget what it was asked for: slides that no worker has begun are not begun."""
        self._stop.set()
        futures = [*self._futures.values(), *self._greeted.values()]
        if futures and self._client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):
                self._client.cancel(futures, force=True)

    def run(self) -> Iterator[Outcome]:
        """Yield each slide's outcome."""
        self._client.subscribe_topic(self._topic, self._hear)
        while self._board.left:
            self._hand_out()
            with contextlib.suppress(queue.Empty):
                yield from self._events.get(timeout=_GLANCE_S)()
            if time.monotonic() - self._glanced > _GLANCE_S:
                self._check()
                yield from self._glance()
                self._glanced = time.monotonic()

    def _hear(self, event: tuple[float, bytes]) -> None:
        """In another thread: take what a worker says."""
        self._events.put(functools.partial(self._told, *pickle.loads(event[1])))

    def _check(self) -> None:
        """Raise where it cannot go on; name the stragglers."""
        now, where = time.monotonic(), self._address
        left = f"{self._board.left} of {len(self._tasks)} slides are left"
        if self._client.status != "running" or now - self._heard > _SILENT_S:
            how = "died" if self._client.status != "running" else f"has not answered for {_SILENT_S:.0f} s"
            raise ClusterError(f"the Dask scheduler {how}: {where}; {left}. {_RESUME}")
        self._watch.say()
        seats = self._board.seats.values()
        if self._greeted.keys() - self._paused or any(each.open or each.running for each in seats):
            self._staffed, self._said_waiting = now, False
            return
        paused = f" ({len(self._paused)} paused by Dask: see their memory)" if self._paused else ""
        if self._refused and len(self._refused) == len(self._infos):
            raise ClusterError(f"no worker of {where} can be used: {'; '.join(self._refused.values())}.")
        if self._still_born >= _STILL_BORN:
            raise ClusterError(
                f"{self._still_born} workers of {where} died before their first slide: see their logs; "
                f"it may be their memory. {left}. {_RESUME}"
            )
        if now - self._staffed > self._wait_s:
            raise ClusterError(
                f"no worker at {where} for {self._wait_s} s (--worker-wait){paused}; {left}. "
                f"Start some with `dask worker {where}`. {_RESUME}"
            )
        if not self._said_waiting:
            self._said_waiting = True
            console.print(f"{self._title}: waiting for workers at {where}{paused}; {left}", markup=False)

    def _hand_out(self) -> None:
        while (given := self._board.next()) is not None:
            slide_id, seat = given
            # Packed, for the worker to unpack: the scheduler looks into tasks, and would import torch.
            packed = pickle.dumps((self._function, absolute(self._tasks[slide_id])))
            limits = self._place.limits and self._place.limits(self._tasks[slide_id], self._beside(seat))
            self._futures[slide_id] = self._submit(
                seat.address, f"{self._title}-{slide_id}",
                work_on, slide_id, packed, limits, self._place.alone, self._topic,
            )  # fmt: skip
            self._watch.begin(slide_id, seat.address)

    def _beside(self, seat: Seat) -> int:
        """Return how many slides are worked on at a time on a worker's machine."""
        return sum(each.slots for each in self._board.seats.values() if each.host == seat.host)

    def _submit(self, address: str, name: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        resource = self._place.resource
        offered = self._infos.get(address, {}).get("resources") or {}
        future: Future[Any] = self._client.submit(
            function,
            *arguments,
            key=f"{name}-{uuid.uuid4().hex}",
            workers=[address],
            allow_other_workers=False,
            resources={resource: 1} if offered.get(resource) else None,
            pure=False,
            retries=0,
        )
        return future

    def _told(self, key: Any, outcome: Outcome) -> Iterator[Outcome]:
        """Take the outcome of a slide, which its worker tells."""
        slide_id = outcome.slide_id
        future = self._futures.get(slide_id)
        if future is None or future.key != key:
            return  # its worker was given up meanwhile
        del self._futures[slide_id]
        self._finished.pop(key, None)
        self._watch.end(slide_id)
        self._board.ended(slide_id)
        self._hand_out()  # before the caller does something with the outcome: the worker waits
        future.release()
        if outcome.status == "skipped" and self._board.was_lost(slide_id):
            # Its worker died when it had done it and before it could tell.
            outcome = dataclasses.replace(outcome, status="done", reason="")
        yield outcome

    def _glance(self) -> Iterator[Outcome]:
        """Take slides of which no worker told: those that could not be begun, or were called off."""
        for slide_id, future in list(self._futures.items()):
            if future.status == "pending":
                continue
            if future.status == "finished":  # it is being told; what is not told then is lost
                since = self._finished.setdefault(future.key, time.monotonic())
                if time.monotonic() - since < _SILENT_S:
                    continue
            error = future.exception() if future.status == "error" else None
            if error is not None and not isinstance(error, KilledWorker):
                reason = f"{type(error).__name__}: {error} ({error.__cause__})"
                yield from self._told(future.key, Outcome(slide_id=slide_id, status="failed", reason=reason))
                continue
            self._futures.pop(slide_id).release()
            self._watch.drop(slide_id)
            yield from self._again(f"{slide_id} was called off", *self._board.dropped(slide_id))

    def _look(self) -> None:
        """In a thread: ask the scheduler for its workers, again and again."""
        while not self._stop.is_set() and (scheduler := self._client.scheduler) is not None:
            try:
                # Not scheduler_info(): it is silent where nothing answers, and of some versions tells five.
                infos = self._client.sync(scheduler.identity, n_workers=-1)["workers"]
                paused = [address for address, info in infos.items() if info["status"] == "paused"]
                begun = self._client.run(at_work, workers=paused, on_error="ignore") if paused else {}
                self._events.put(functools.partial(self._workers, infos, begun))
            except OSError:
                pass  # nothing was heard, which _check says when it lasts
            except _CLOSING:
                if self._client.status == "running" and not self._stop.is_set():
                    raise
            self._stop.wait(_LOOK_S)

    def _workers(
        self, infos: Mapping[str, Mapping[str, Any]], begun: Mapping[str, set[Any]]
    ) -> Iterator[Outcome]:
        """Take news of the workers: greet those who came, give up those that are gone.

        ``begun``: of paused ones, the keys of what they have begun.
        """
        self._heard, self._infos = time.monotonic(), infos
        for address in [each for each in self._refused if each not in infos]:
            del self._refused[address]
        for address in [each for each in self._greeted if each not in infos]:
            self._greeted.pop(address).release()
            self._still_born += 1
        for address in [each for each in self._board.seats if each not in infos]:
            for slide_id in self._board.seats[address].running:
                future = self._futures.pop(slide_id)
                self._client.cancel([future], force=True)
                self._watch.drop(slide_id)
            again, failed = self._board.lost(address)
            if again or failed:
                yield from self._again(f"{address} died", again, failed)
        resource = self._place.resource
        offer = any((each.get("resources") or {}).get(resource) for each in infos.values())
        for address, info in infos.items():
            fits = not offer or bool((info.get("resources") or {}).get(resource))
            seat = self._board.seats.get(address)
            if seat is not None:
                seat.open = fits and info["status"] == "running"
            elif fits and address not in self._refused and address not in self._greeted:
                self._greet(address)
        for address, keys in begun.items():
            self._take_back(address, keys)
        self._say_paused()

    def _take_back(self, address: str, begun: set[Any]) -> None:
        """Take from a paused worker the slides that it has not begun, and may never begin."""
        seat = self._board.seats.get(address)
        for slide_id in list(seat.running) if seat else []:
            if self._futures[slide_id].key not in begun and self._futures[slide_id].status == "pending":
                self._client.cancel([self._futures.pop(slide_id)], force=True)
                self._watch.drop(slide_id)
                self._board.taken_back(slide_id)

    def _say_paused(self) -> None:
        """Name the workers that Dask holds back: it says so in their own logs alone."""
        paused = {each for each, info in self._infos.items() if info["status"] == "paused"}
        for address in sorted(paused - self._paused):
            limit = (self._infos[address].get("memory_limit") or 0) / 2**30
            console.print(
                f"{self._title}: worker {address} is paused by Dask: its memory is near its limit of "
                f"{limit:.2g} GiB; until there is less it begins no slide. `dask worker --memory-limit 0` "
                "starts one without a limit.",
                markup=False,
            )
        self._paused = paused

    def _again(self, what: str, again: list[str], failed: list[Outcome]) -> Iterator[Outcome]:
        if again:
            console.print(f"{self._title}: {what}; tried again: {', '.join(again)}", markup=False)
        yield from failed

    def _greet(self, address: str) -> None:
        future = self._submit(address, "hello", about, self._beacon, self._prepare)
        self._greeted[address] = future
        future.add_done_callback(lambda future: self._events.put(lambda: self._met(address, future)))

    def _met(self, address: str, future: Future[Any]) -> Iterator[Outcome]:
        """Give a worker its seat, or say why it cannot be used."""
        if self._greeted.get(address) is not future:
            return
        del self._greeted[address]
        why = ""
        if future.status == "error":
            why = f"cannot load wsi-mil ({future.exception()}); install the same version there"
        elif future.status != "finished" or address not in self._infos:
            return  # it is gone, or will be greeted again
        else:
            said = future.result(timeout=_SILENT_S)
            if said["version"] != wsi_mil.__version__:
                why = f"has wsi-mil {said['version']}, and this is {wsi_mil.__version__}"
            elif not said["sees"]:
                why = f"does not see {self._place.shared} of this machine: a shared file system is needed"
            elif said["reason"]:
                why = f"cannot be used: {said['reason']}"
        future.release()
        if why:
            self._refused[address] = f"{address} {why}"
            console.print(f"{self._title}: worker {address} is left out: it {why}", markup=False)
        else:
            info = self._infos[address]
            slots = 1 if self._place.alone else int(info["nthreads"])
            self._board.seats[address] = Seat(address, str(info["host"]), slots)
        yield from ()
