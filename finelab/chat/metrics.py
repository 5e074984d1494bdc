"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from finelab.chat.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One server's counters, apart from those of other servers in the same process."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and status", "route", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read", "model")
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated", "model")
        self.cached_tokens = self._counter("cached_tokens", "Prompt tokens that need not be read again")
        self.request_seconds = self._histogram("request_seconds", "From a request to the end of its answer")
        self.first_token_seconds = self._histogram("first_token_seconds", "From a request to its first token")
        self._gauge("running", "Answers being generated").set_function(lambda: engine.running)
        self._gauge("waiting", "Answers in the queue").set_function(lambda: engine.waiting)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"finelab_{name}", help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str) -> Gauge:
        return Gauge(f"finelab_{name}", help_, registry=self.registry)

    def _histogram(self, name: str, help_: str) -> Histogram:
        return Histogram(f"finelab_{name}", help_, buckets=SECONDS, registry=self.registry)
