"""Throw-away PostgreSQL clusters, pgweir processes and a raw wire client for the suite and the demo."""

from .cluster import Cluster
from .util import background, eventually, free_port, holds, never
from .weir import DIRECT, Weir, lane
from .wire import Message, RawClient, ServerError

__all__ = [
    "DIRECT", "Cluster", "Message", "RawClient", "ServerError", "Weir", "background", "eventually", "free_port",
    "holds", "lane", "never",
]
