"""Conversations that outlive the process: transcripts and model states on disk."""

from fulmen.sessions.check import Problem, check, repair
from fulmen.sessions.names import quoted, read_name
from fulmen.sessions.records import MAX_METADATA, SessionState, StoredTurn, check_metadata
from fulmen.sessions.session import Session, default_store, export, last_question, read_stored
from fulmen.sessions.store import SessionStore

__all__ = [
    "MAX_METADATA",
    "Problem",
    "Session",
    "SessionState",
    "SessionStore",
    "StoredTurn",
    "check",
    "check_metadata",
    "default_store",
    "export",
    "last_question",
    "quoted",
    "read_name",
    "read_stored",
    "repair",
]
