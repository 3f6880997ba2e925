"""What saved results say of the gain over a written prompt, in words; they may come out of somebody else's file."""

from typing import Any

from softprompt.metrics.formatting import format_interval, format_metric

_TOLD = 80  # characters of a written prompt


def format_gain(result: Any) -> str:
    """The gain over the written prompt that a saved result has, with its interval; nothing where it has none.

    It may come out of somebody else's file.
    """
    try:
        saved = result["baseline"]
        metric, gain = str(saved["metric"]), saved["gain"]
        value, low, high = (float(gain[key]) for key in ("difference", "low", "high"))
        return f"{format_metric(metric, value, True)} {format_interval(metric, low, high, True)}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""


def describe_gain(split: str, result: Any) -> str:
    """``format_gain`` with what was compared, on which rows."""
    if not (gain := format_gain(result)):
        return ""
    try:
        saved = result["baseline"]
        metric, low, high = str(saved["metric"]), float(saved["gain"]["low"]), float(saved["gain"]["high"])
        rows = f"{int(saved['n']):,}" + (f" of {int(saved['sample']['of']):,}" if "sample" in saved else "")
        learned, written = (format_metric(metric, float(saved[key])) for key in ("learned", "value"))
        words = describe_written(str(saved["instruction"]), int(saved["shots"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return gain
    chance = "" if low > 0 or high < 0 or low == high else ", which may be chance"
    rows = f"{rows} {'rows' if split == 'all' else f'{split} rows'}"
    return f"{metric} {gain}{chance}: {learned} learned, {written} written, on the same {rows}; written: {words}"


def describe_written(instruction: str, shots: int) -> str:
    """A written prompt in a few words."""
    words = instruction if len(instruction) <= _TOLD else f"{instruction[: _TOLD - 3]}..."
    told = f"'{words}'" if instruction else "no instruction"
    return told + (f" and {shots} solved example{'s' if shots > 1 else ''}" if shots else "")
