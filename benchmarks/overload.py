"""Responses under overload: the part of benchmarks/serving.py that sends requests at a fixed rate.

The generator runs on the same cores as the service and takes about 0.2 core-milliseconds per request with kept connections: at
twenty times the capacity of a small model that is a large part of a core. `generator_cores` has it.
"""

from pathlib import Path
from typing import Any

from benchmarks.load import closed_loop, open_loop, percentile
from benchmarks.processes import BenchServer, start_service
from service.settings import Settings

LOAD_FACTORS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2, 5, 20)  # of the capacity
SECONDS, LAST_SECONDS = 10, 20  # at each factor; at the last one
MIN_REQUESTS = 12  # at each factor: with a slow engine it takes longer
COLORS = {"p50": "#7fa8d6", "p99": "#1f5fa8", "429": "#d9a05b"}


def measure_overload(name: str, bundle: Path, jpeg: bytes, precision: str) -> dict[str, Any]:
    """Latencies of accepted and rejected requests at each factor of the capacity, which is measured just before."""
    default = Settings.model_fields.get("queue_seconds")
    age = float(default.default) if default else None
    with start_service(name, bundle, precision=precision) as server:
        request = server.request(jpeg)
        closed_loop(server.url, iter([request] * 8), 2)
        unloaded = closed_loop(server.url, iter([request] * 40), 1).latencies_ms()
        # Two at a time keep the engine busy, and wait less than the limit even if it is slow.
        capacity = closed_loop(server.url, iter(lambda: request, b""), 2, SECONDS).responses_per_second()
        rows = [measure_at_rate(server, request, capacity, factor) for factor in LOAD_FACTORS]
        memory = round(server.memory_mb())
    result = {
        "precision": precision, "capacity": round(capacity, 2), "unloaded_ms": round(percentile(unloaded, 50) or 0, 1),
        "queue_seconds": age, "memory_mb": memory, "rows": rows,
    }  # fmt: skip
    if age:
        result["bound_ms"] = round(1000 * age + 2 * result["unloaded_ms"])
    return result


def measure_at_rate(server: BenchServer, request: bytes, capacity: float, factor: float) -> dict[str, Any]:
    """Measure one rate."""
    spent = server.cpu_seconds()
    seconds = max(LAST_SECONDS if factor == LOAD_FACTORS[-1] else SECONDS, MIN_REQUESTS / (factor * capacity))
    load = open_loop(server.url, request, factor * capacity, seconds)
    accepted, refused = load.latencies_ms(200), load.latencies_ms(429)
    row = {
        "factor": factor, "offered": round(factor * capacity, 1), "answered": round(load.responses_per_second(), 2),
        "counts": load.status_counts(), "no_retry_after": sum(
            one.status == 429 and not one.header("retry-after") for one in load.responses
        ),
        **{f"p{percent}_ms": _round_ms(percentile(accepted, percent)) for percent in (50, 99)},
        "max_ms": _round_ms(accepted[-1] if accepted else None),
        **{f"p{percent}_429_ms": _round_ms(percentile(refused, percent)) for percent in (50, 99)},
        "generator_cores": round(load.generator_cpu_seconds / load.seconds, 2),
        "server_cores": round((server.cpu_seconds() - spent) / load.seconds, 2),
    }  # fmt: skip
    keys = ("factor", "offered", "answered", "p50_ms", "p99_ms", "max_ms", "p50_429_ms", "p99_429_ms", "counts")
    print(server.name, "  ".join(f"{key} {row[key]}" for key in keys), flush=True)
    return row


def plot_overload(models: dict[str, dict[str, Any]], cpu: str, target: Path) -> None:
    """For each model, latencies over the offered load, and below them the fractions of the statuses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(models), 6), dpi=100, layout="constrained")
    panels = figure.subplots(2, len(models), sharex=True, squeeze=False, height_ratios=[3, 1])
    for column, (name, model) in enumerate(models.items()):
        above, below = panels[0][column], panels[1][column]
        factors = [row["factor"] for row in model["rows"]]
        for key, label, color in (
            ("p50_ms", "accepted, p50", COLORS["p50"]), ("p99_ms", "accepted, p99", COLORS["p99"]),
            ("p99_429_ms", "rejected (429), p99", COLORS["429"]),
        ):  # fmt: skip
            points = [(row["factor"], row[key]) for row in model["rows"] if row[key] is not None]
            above.plot(*zip(*points, strict=True) if points else ([], []), "o-", color=color, label=label, markersize=4)
        if "bound_ms" in model:
            above.axhline(model["bound_ms"], color="#888888", linewidth=0.8, linestyle="--")
            above.text(factors[0], model["bound_ms"] * 1.08, "age limit + twice unloaded", fontsize=8, color="#666666")
        above.set(xscale="log", yscale="log", xticks=factors)
        above.set_title(
            f"{name}, {model['precision']}: {model['capacity']:.1f} images/s", loc="left", fontsize=10, weight="bold"
        )
        above.grid(axis="y", color="#eeeeee")
        shares = {
            status: [100 * row["counts"].get(status, 0) / max(1, sum(row["counts"].values())) for row in model["rows"]]
            for status in sorted({status for row in model["rows"] for status in row["counts"]})
        }
        tones = {"200": COLORS["p99"], "429": COLORS["429"]}
        below.stackplot(
            factors, *shares.values(), labels=list(shares), colors=[tones.get(status, "#c03030") for status in shares]
        )
        below.set_xticks(factors, [f"{factor:g}" for factor in factors], fontsize=8)
        below.minorticks_off()
        below.set_xlabel("offered load, times the capacity", fontsize=9)
        below.legend(fontsize=8, loc="lower left")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    panels[0][0].set_ylabel("milliseconds from the scheduled time", fontsize=9)
    panels[1][0].set_ylabel("% of responses", fontsize=9)
    panels[0][0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.9))
    figure.suptitle(cpu, fontsize=8, color="#666666", x=0.99, ha="right")
    figure.savefig(target)


def _round_ms(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
