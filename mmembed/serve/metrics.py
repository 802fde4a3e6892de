"""What Prometheus reads of the server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Borders of the histogram: a text query takes milliseconds, an explanation seconds."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Counters of one server, in a registry of their own."""

    registry: CollectorRegistry = field(default_factory=lambda: CollectorRegistry(auto_describe=True))
    requests: Counter = field(init=False)
    seconds: Histogram = field(init=False)
    queries: Counter = field(init=False)
    rows: Gauge = field(init=False)

    def __post_init__(self) -> None:
        made = {
            "requests": Counter("mmembed_requests", "Requests.", ["route", "code"], registry=self.registry),
            "seconds": Histogram(
                "mmembed_request_seconds",
                "Seconds from a request to the end of its answer.",
                ["route"],
                buckets=SECONDS,
                registry=self.registry,
            ),
            "queries": Counter("mmembed_queries", "Parts of queries.", ["modality"], registry=self.registry),
            "rows": Gauge("mmembed_index_rows", "Rows of the index.", ["modality"], registry=self.registry),
        }
        for name, metric in made.items():
            object.__setattr__(self, name, metric)
        ProcessCollector(registry=self.registry)

    def set_rows(self, rows: Mapping[str, int]) -> None:
        """The rows of the index by modality."""
        for modality, count in rows.items():
            self.rows.labels(modality).set(count)

    def text(self) -> bytes:
        """All of them in the text format of Prometheus."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class Measured:
    """Counts what `app` answers, and how long that takes."""

    app: ASGIApp
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, code = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            # Addresses that no route has are one: else whoever tries them all fills the memory with their counters.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(code)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
