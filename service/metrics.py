"""The service's metrics in /metrics, beside BentoML's. No label takes a value that a caller can choose freely."""

from functools import cache


class Metrics:
    """Counters and histograms of this process; BentoML sums them over the workers."""

    def __init__(self) -> None:
        # Imported late: BentoML must have set the folder where the workers' metrics are collected.
        from prometheus_client import Counter, Histogram

        buckets = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._requests = Counter("maskserve_requests", "Requests, including rejected ones", ["route", "status"])
        self._request_seconds = Histogram(
            "maskserve_request_seconds", "Time from the head of a request to the end of its response", ["route"],
            buckets=buckets,
        )  # fmt: skip
        self._images = Counter("maskserve_images", "Images that were segmented", ["model", "format"])
        self._stage_seconds = Histogram(
            "maskserve_stage_seconds", "Time of an image by stage: read, queue, decode, infer, encode",
            ["model", "stage"], buckets=buckets,
        )  # fmt: skip

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; `status` is 0 if the caller disconnected before the response."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_image(self, model: str, format: str, milliseconds: dict[str, float]) -> None:
        """Count an image and the time of its stages."""
        self._images.labels(model, format).inc()
        for stage, spent in milliseconds.items():
            self._stage_seconds.labels(model, stage).observe(spent / 1e3)


@cache
def get_metrics() -> Metrics:
    """The metrics of this process."""
    return Metrics()
