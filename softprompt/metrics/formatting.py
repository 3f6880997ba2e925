"""Numbers as people read them. What was not measured is a dash."""

import math

from softprompt.metrics.registry import NEGATIVE_LOSS, metric_format

MISSING = "\N{EN DASH}"
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


def metric_heading(name: str) -> str:
    """A metric as a heading names it."""
    return metric_format(name).heading


def choose_step_metric(kind: str, metric: str) -> str:
    """What validation chose steps and learning rates by: outputs are too costly to generate for that."""
    return NEGATIVE_LOSS if kind == "generation" else metric


def format_metric(name: str, value: float | None, signed: bool = False) -> str:
    """A metric, or with ``signed`` a difference of two, in the digits that its scale deserves."""
    return format_fixed(value, metric_format(name).digits, signed)


def format_interval(name: str, low: float | None, high: float | None, signed: bool = False) -> str:
    """``[low, high]``, empty where there is none."""
    if low is None or high is None:
        return ""
    return f"[{format_metric(name, low, signed)}, {format_metric(name, high, signed)}]"


def format_fixed(value: float | None, digits: int, signed: bool = False) -> str:
    """A number with so many digits behind the point; a minus sign that is as wide as a plus."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return _not_finite(value)
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def format_count(value: float | None) -> str:
    """A whole number with its thousands marked."""
    return format_fixed(value, 0)


def format_short(value: float | None, aligned: bool = False) -> str:
    """Three significant digits, never as a power of ten; only ``aligned`` ones end with zeros behind the point."""
    if value is None or not math.isfinite(value) or value == 0:
        return format_fixed(value, 0)
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    text = format_fixed(rounded, min(digits, 12))
    return text.rstrip("0").rstrip(".") if "." in text and not aligned else text


def format_bytes(value: float | None, aligned: bool = False) -> str:
    """Three significant digits in B, kB, MB, ... of 1,000."""
    if value is None or not math.isfinite(value):
        return format_fixed(value, 0)
    unit = 0
    while unit + 1 < len(_BYTES) and abs(float(f"{value:.3g}")) >= 1000:
        value, unit = value / 1000, unit + 1
    return f"{format_short(value, aligned and unit > 0)} {_BYTES[unit]}"


def format_seconds(value: float | None) -> str:
    """A duration: ``0.8 s``, ``42 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if value is None or not math.isfinite(value):
        return format_fixed(value, 0)
    if value < 59.5:
        return f"{format_short(value) if value < 9.95 else f'{value:.0f}'} s"
    if round(value) < 3600:
        return f"{round(value) // 60} min {round(value) % 60:02d} s"
    return f"{round(value / 60) // 60:,} h {round(value / 60) % 60:02d} min"


def format_percent(share: float) -> str:
    """A share of one as whole per cent; what is there, or lacks, by less than half of one is not rounded away."""
    if 0 < share < 0.005:
        return "<1%"
    if 0.995 <= share < 1:
        return ">99%"
    return f"{share:.0%}"


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return "∞" if value > 0 else "\N{MINUS SIGN}∞"
