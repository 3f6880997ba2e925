"""What went wrong within one run of several, in one line: the others go on."""

import torch


def error_line(error: Exception) -> str:
    """An error in one line; of a lack of memory, what can be done."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text.lower() for word in words):
        return f"out of memory ({text}): a smaller --batch-size or --max-length needs less"
    return text
