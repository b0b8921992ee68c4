"""The service's own figures in /metrics, beside BentoML's. No label takes a value that a caller can invent."""

from functools import cache


class Metrics:
    """Counters and histograms of this process; BentoML sums them over the workers."""

    def __init__(self) -> None:
        # Imported late: BentoML must first have said where the workers' figures are gathered.
        from prometheus_client import Counter, Histogram

        buckets = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._requests = Counter("maskserve_requests", "Requests, with those that were refused", ["route", "status"])
        self._request_seconds = Histogram(
            "maskserve_request_seconds", "From a request's first line to its answer's end", ["route"], buckets=buckets
        )
        self._images = Counter("maskserve_images", "Images that were labelled", ["model", "format"])
        self._stage_seconds = Histogram(
            "maskserve_stage_seconds", "Where the time of an image goes: read, queue, decode, infer, encode",
            ["model", "stage"], buckets=buckets,
        )  # fmt: skip

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; a status of 0 is a caller that went before the answer."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_image(self, model: str, format: str, milliseconds: dict[str, float]) -> None:
        """Count an image and where its time went."""
        self._images.labels(model, format).inc()
        for stage, spent in milliseconds.items():
            self._stage_seconds.labels(model, stage).observe(spent / 1e3)


@cache
def get_metrics() -> Metrics:
    """The one of this process."""
    return Metrics()
