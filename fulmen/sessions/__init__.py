"""Conversations that outlive the process: transcripts and model states on disk."""

from fulmen.sessions.session import Exchange, Session, default_store, export, last_question
from fulmen.sessions.store import Head, SessionStore, Turn

__all__ = [
    "Exchange",
    "Head",
    "Session",
    "SessionStore",
    "Turn",
    "default_store",
    "export",
    "last_question",
]
