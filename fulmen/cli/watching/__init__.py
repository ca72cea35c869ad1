"""The page on which a browser watches an agent, or a team, and answers what it asks.

Views of the lead and its agents -> Feed -> events over HTTP -> page/agent.js
PageAsker <- Feed <- answers over HTTP <-
"""

from fulmen.cli.watching.asking import PageAsker
from fulmen.cli.watching.feed import Feed
from fulmen.cli.watching.server import AgentPage
from fulmen.cli.watching.views import Both, FeedTeam, FeedView

__all__ = ["AgentPage", "Both", "Feed", "FeedTeam", "FeedView", "PageAsker"]
