"""fulmen agent --acp: runs of an agent for an editor that speaks the Agent Client Protocol.

    editor <-> stdio (package acp) <-> AcpAgent (agent.py) -> OpenRun (session.py) -> Work

A session of the protocol is a run. The editor is the person: it is asked, and sees what happens.
"""

from fulmen.cli.acp.agent import AcpAgent, serve
from fulmen.cli.acp.session import OpenRun

__all__ = ["AcpAgent", "OpenRun", "serve"]
