"""Sessions behind the dialects: who has one, what of it is in the cache, and when it is saved.

    a request names one -> hold: nobody else has it, its turns are read, its states brought back
    its answer ends     -> keep: the turn and the states after it are written in the background
    the next request    -> waits until that is done

All files are read and written in threads of their own, saves in others than the rest; only copies
out of the cache and into it run in the engine's thread, piece by piece between its steps. So
neither the event loop nor another key's answer waits for a disk.

Each API key has a store of its own, so nobody meets another's session: FOLDER/keys/SCOPE, or FOLDER
itself where no key is needed, which is then the command line's too.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from fulmen.chat import Completion, Message, Tool, Transcript
from fulmen.engine import Between
from fulmen.sampling import shown
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal
from fulmen.sessions import Session, SessionState, SessionStore, quoted, read_name

R = TypeVar("R")
Status = Literal["idle", "answering", "saving"]
Key = tuple[str, str]
"""Scope of an API key, and name of a session"""

_MAX_OPEN: Final = 16
"""Sessions whose turns stay in memory"""
_MAX_UNWRITTEN: Final = 256
"""Sessions that stay in memory while their turns cannot be written"""
_NUM_THREADS: Final = 4

_log = logging.getLogger(__name__)


class Sessions:
    """The sessions of a server, each with one of its models; for one event loop."""

    def __init__(self, models: Mapping[str, Any], config: ServerConfig) -> None:
        """models: those served, by their names. Those with their engine within reach, as
        `LocalModel`, can have sessions."""
        self.models = models
        self.config = config
        self._llms = {
            name: llm
            for name, model in models.items()
            if (llm := getattr(model, "llm", None)) is not None
        }
        self.threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fulmen-sessions")
        self.savers = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="fulmen-saves")
        self._held: dict[Key, Held] = {}
        self._opened: OrderedDict[Key, Session] = OrderedDict()
        """Sessions as they were left, the last used last"""

    async def close(self) -> None:
        """Wait until all that is being saved is on disk."""
        for held in list(self._held.values()):
            await held.is_over.wait()
        for pool in (self.threads, self.savers):
            pool.shutdown(wait=False)

    async def hold(self, name: str, scope: str, model_name: str) -> "Held":
        """Return a session with a model, which need not exist, for one request: nobody else has it
        until it is released. Its states are in the cache then, as far as memory goes.

        Raises a Refusal: 400 for what is no name, 409 if it is in use or belongs to another model.
        """
        held = await self.take(name, scope, model_name)
        try:
            await held.run(held.open)
        except BaseException:
            held.release()
            raise
        return held

    async def take(self, name: str, scope: str, model_name: str | None = None) -> "Held":
        """Return a session, which need not exist and is not opened, as soon as it is saved. Raises
        a Refusal as `hold`.

        model_name  model that goes on with it, or begins it; None where none is asked
        """
        key = (scope, self.checked_name(name))
        while (other := self._held.get(key)) is not None:
            if not other.is_saving:
                raise Refusal(
                    409,
                    f"session {quoted(key[1])} is answering another request: wait until that is "
                    "over, or fork it",
                )
            await other.is_over.wait()
        held = self._held[key] = Held(self, key, self._opened.get(key), model_name)
        return held

    async def saved(self, name: str, scope: str) -> str:
        """Return the stored name of a session once it is not being saved any more."""
        key = (scope, self.checked_name(name))
        while (other := self._held.get(key)) is not None and other.is_saving:
            await other.is_over.wait()
        return key[1]

    def status(self, name: str, scope: str) -> Status:
        """Return what a session does: answering, saving or idle."""
        held = self._held.get((scope, name))
        return "idle" if held is None else "saving" if held.is_saving else "answering"

    def running(self, name: str, scope: str) -> "RunningAnswer | None":
        """Return the answer that a session waits for; None if it waits for none."""
        held = self._held.get((scope, name))
        return None if held is None or held.is_saving else held.running

    def checked_name(self, name: str) -> str:
        """Return a name as it is stored. Raises a Refusal for one that no session can have, and
        where no sessions are kept."""
        if self.config.sessions is None:
            raise Refusal(404, "this server keeps no sessions, it was started without them")
        if not self._llms:
            raise Refusal(
                404, "this server keeps no sessions, its model has no engine within reach"
            )
        try:
            return read_name(name)
        except ValueError as error:
            raise Refusal(400, str(error), param="session") from None

    def store(self, scope: str) -> SessionStore:
        """Return the store of a scope."""
        folder = self.config.sessions
        assert folder is not None
        root = folder / "keys" / scope if scope else folder
        return SessionStore(root, max_bytes=self.config.session_bytes)

    def llm(self, model_name: str) -> Any:
        """Return the LLM of a model. Raises a Refusal (404) for one whose engine is elsewhere."""
        try:
            return self._llms[model_name]
        except KeyError:
            raise Refusal(
                404, f"no session is kept with {model_name}, it has no engine within reach"
            ) from None

    def check_model(self, state: SessionState, model_name: str) -> None:
        """Refuse a session (409) that belongs to another model."""
        if state.fingerprint != self.llm(model_name).origin.model:
            raise _of_another_model(state)

    def served_as(self, state: SessionState) -> str | None:
        """Return the name of the model that a session belongs to; None if it is not served. Of two
        with the same weights that is the one that it was begun with."""
        names = [name for name, llm in self._llms.items() if _weights_of(llm) == state.fingerprint]
        return state.model if state.model in names else next(iter(names), None)

    def owner(self, state: SessionState) -> str:
        """Return the name of the model that a session belongs to. Raises a Refusal (409) if it is
        not served."""
        name = self.served_as(state)
        if name is None:
            raise _of_another_model(state)
        return name

    async def in_thread(self, work: Callable[[], R], *, saves: bool = False) -> R:
        """Run work that reads or writes files; saves: it may take long, and others of its kind wait
        for it."""
        pool = self.savers if saves else self.threads
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def leave(self, held: "Held") -> None:
        """Take a session back."""
        del self._held[held.key]
        if held.session is not None:
            self._opened[held.key] = held.session
            self._opened.move_to_end(held.key)
        if len(self._opened) > _MAX_OPEN:
            written = (key for key, session in self._opened.items() if session.is_written)
            oldest = next(written, None)
            if oldest is not None or len(self._opened) > _MAX_UNWRITTEN:
                del self._opened[next(iter(self._opened)) if oldest is None else oldest]

    def forget(self, key: Key) -> None:
        """Drop what is in memory of a session."""
        self._opened.pop(key, None)


@dataclass(frozen=True, slots=True)
class RunningAnswer:
    """An answer that a session waits for."""

    id: str
    asked: Sequence[Message]
    """Messages that it answers: those after the last answer before it"""

    @classmethod
    def of(cls, id: str, messages: Sequence[Message]) -> "RunningAnswer":
        """Return the answer to messages, the whole conversation before it."""
        places = [i for i, message in enumerate(messages, 1) if message.role == "assistant"]
        return cls(id, messages[places[-1] if places else 0 :])


class Held:
    """A session that one request has."""

    def __init__(
        self, sessions: Sessions, key: Key, opened: Session | None, model_name: str | None
    ) -> None:
        """
        opened      the session as it was left, if it is still in memory
        model_name  model that goes on with it; None where none is asked
        """
        self.key = key
        self._model_name = model_name
        self.session: Session | None = None
        """None until it is opened, and for one that does not exist yet"""
        self.running: RunningAnswer | None = None
        self.is_saving = False
        self.is_over = asyncio.Event()
        """Set once it is released and saved"""
        self._sessions = sessions
        self._opened = opened
        self._store = sessions.store(key[0]) if opened is None else opened.store
        self._loop = asyncio.get_running_loop()
        self._work: asyncio.Future[Any] | None = None
        self._locks = ExitStack()

    @property
    def name(self) -> str:
        """Its name."""
        return self.key[1]

    @property
    def transcript(self) -> Transcript | None:
        """Its turns, if it has any."""
        return None if self.session is None else self.session.transcript

    def check_turn(self, known: str) -> None:
        """Refuse a request (409) that was made for another state of the session.

        known  id of its last turn as the client knows it, empty for none
        """
        last = None if self.session is None else self.session.state.turn
        if known != (last or ""):
            raise Refusal(
                409,
                f"session {quoted(self.name)} stands at {_turn_named(last)}, the request goes on "
                f"from {_turn_named(known)}: read the session again",
                param="session_turn",
            )

    async def run(self, work: Callable[[], R], *, saves: bool = False) -> R:
        """Run work on it in a thread, that of `in_thread`; it is not released before that ends,
        whoever is gone."""
        self._work = future = asyncio.ensure_future(self._sessions.in_thread(work, saves=saves))
        return await asyncio.shield(future)

    async def restore(self, ids: Sequence[int]) -> None:
        """Bring back what the cache has lost of the beginning of a prompt; what cannot be brought
        back is read again."""
        session = self.session
        if session is None:
            return
        try:
            await self.run(lambda: session.restore(ids))
        except (OSError, ValueError) as error:
            _log.warning("states of session %s are not brought back: %s", self.name, error)

    def keep(
        self,
        messages: Sequence[Message],
        completion: Completion,
        tools: Sequence[Tool | Mapping[str, Any]],
    ) -> None:
        """Save the answer to messages, the whole conversation before it, in the background. One
        that failed or says nothing is not kept, nor one that ends after the release."""
        reply = completion.reply
        says_something = reply.thinking or reply.content or reply.tool_calls
        if completion.finish_reason == "error" or not says_something or self.is_over.is_set():
            return
        self.is_saving = True
        self._work = asyncio.ensure_future(
            self._sessions.in_thread(lambda: self._save(messages, completion, tools), saves=True)
        )

    def release(self) -> None:
        """Let others have it, once what is under way has ended. Safe to call again."""
        if self._work is None or self._work.done():
            self._end()
        else:
            self._work.add_done_callback(lambda work: self._end())

    def lock(self) -> None:
        """Keep other processes out until it is released. Raises a Refusal if one has it."""
        try:
            self._locks.enter_context(self._store.used_by_one(self.name))
        except ValueError as error:
            raise Refusal(409, str(error)) from None

    def check_free_place(self) -> None:
        """Refuse one session too many."""
        count, most = len(self._store.names()), self._sessions.config.max_sessions
        if count >= most:
            raise Refusal(
                409, f"there are {count} sessions, at most {most} may be kept: delete some"
            )

    def open(self) -> None:
        """Read its turns and bring back its states, in a thread."""
        if not self._store.has(self.name):
            self.check_free_place()
            return
        self.lock()
        state = self.state()
        opened = self._opened
        if opened is not None and opened.llm is self._llm and _place(opened.state) == _place(state):
            self.session = opened
            return
        self._store = self._sessions.store(self.key[0])  # one that holds no turns of before
        self.session = refusing(self.name, self._new_session)

    def state(self) -> SessionState:
        """Return where it stands. Raises a Refusal: 404 if there is none, 409 if it belongs to
        another model."""
        if not self._store.has(self.name):
            raise no_session(self.name)
        state = refusing(self.name, lambda: self._store.state(self.name))
        self._sessions.check_model(state, self._asked_model)
        return state

    def create(self, messages: Sequence[Message], metadata: Mapping[str, str]) -> None:
        """Begin the session, in a thread: empty, or with a conversation that was held elsewhere and
        ends with an answer. Raises a Refusal (409) if it exists."""
        self.check_free_place()
        self.lock()
        if self._store.has(self.name):
            raise Refusal(409, f"there is a session {quoted(self.name)} already", param="name")
        try:
            session = self._new_session()
            session.add_history(messages)
            session.note(metadata)
        except BaseException:
            if self._store.has(self.name):
                self._store.remove(self.name)
            raise
        self.session = session

    def write(self) -> None:
        """Write what could not be saved before, in a thread."""
        if self._opened is None or self._opened.is_written:
            return
        self.lock()
        refusing(self.name, self._opened.write)

    @property
    def _asked_model(self) -> str:
        assert self._model_name is not None, "the session was taken without a model"
        return self._model_name

    @property
    def _llm(self) -> Any:
        return self._sessions.llm(self._asked_model)

    def _new_session(self) -> Session:
        return Session(
            self._llm,
            self._store,
            self.name,
            model=self._asked_model,
            between=self._between(),
        )

    def _between(self) -> Between:
        """Return what runs work in the engine's thread, for threads of ours."""
        loop, model = self._loop, self._sessions.models[self._asked_model]

        def between(work: Callable[[], R], /) -> R:
            call = asyncio.run_coroutine_threadsafe(model.call(work), loop)
            result: R = call.result()
            return result

        return between

    def _save(
        self,
        messages: Sequence[Message],
        completion: Completion,
        tools: Sequence[Tool | Mapping[str, Any]],
    ) -> None:
        """Add a turn, in a thread. A failure is the log's: the answer has gone out."""
        try:
            if self.session is None:
                if self._store.has(self.name):
                    raise ValueError("another process began a session of this name meanwhile")
                self.lock()
                self.session = self._new_session()
            self.session.save(messages, completion, tools)
        except Exception as error:
            _log.warning("an answer is not kept in session %s: %s", quoted(self.name), error)

    def _end(self) -> None:
        if self.is_over.is_set():
            return
        if self._work is not None and not self._work.cancelled():
            self._work.exception()  # it was told where it was waited for
        self._locks.close()
        self._sessions.leave(self)
        self.is_over.set()


def refusing(name: str, work: Callable[[], R]) -> R:
    """Run work on a session's files; what fails there is told without a path of this machine."""
    try:
        return work()
    except (OSError, ValueError) as error:
        _log.warning("session %s cannot be used: %s", quoted(name), error)
        raise Refusal(
            500, f"session {quoted(name)} cannot be used, the server's log says why"
        ) from None


def no_session(name: str) -> Refusal:
    """Return the refusal for a session that is not there."""
    return Refusal(404, f"there is no session {quoted(name)}")


def _weights_of(llm: Any) -> str | None:
    """Return the fingerprint of a model's weights; None for those of no folder, which have no
    sessions."""
    try:
        return str(llm.origin.model)
    except ValueError:
        return None


def _of_another_model(state: SessionState) -> Refusal:
    return Refusal(
        409,
        f"session {quoted(state.name)} belongs to another model, it was begun with "
        f"{Path(state.model).name}",
    )


def _turn_named(turn: str | None) -> str:
    return f"turn {shown(turn[:80])}" if turn else "no turn"


def _place(state: SessionState) -> tuple[object, ...]:
    """Return where a session stands, without its times."""
    return state.turn, state.num_kept, state.created
