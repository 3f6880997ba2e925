"""Processes that kill themselves at a chosen operation on the disk, and what a finished run leaves."""

RESULTS = ("prompt.safetensors", "prompt.json", "history.jsonl", "profile.json", "rows.json")


SETTINGS = """
length = 4
steps = 60
batch_size = 8
eval_every = 10
checkpoint_every = 4
learning_rate = 0.3
averaging = 0.5
patience = 0
init = "random"
"""


# dies right before the operation on the disk that DIE_AT counts to; a file that is written makes one or two of them;
# or right after something was renamed to DIE_ONCE_THERE; or only stops right before the operation of STOP_AT
DYING = """
import os, signal

left = {signal.SIGKILL: int(os.environ.get("DIE_AT", 0)), signal.SIGSTOP: int(os.environ.get("STOP_AT", 0))}

def dying(operation):
    def counted(*arguments, **options):
        for how in left:
            left[how] -= 1
            if left[how] == 0:
                os.kill(os.getpid(), how)
        result = operation(*arguments, **options)
        if str(arguments[-1]) == os.environ.get("DIE_ONCE_THERE"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

for name in ("fsync", "replace", "rename"):
    setattr(os, name, dying(getattr(os, name)))
"""
