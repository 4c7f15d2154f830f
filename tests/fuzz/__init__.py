"""Fuzzing: readers of files from strangers, fed with damaged and forged ones. `python -m tests.fuzz TARGET --seconds 60`.

Only a `FluxError` may come out of a reader: no other exception, no crash, no more than two seconds of processor time, no
memory out of proportion. `targets.py` says what is read, `mutate.py` how files are changed, `run.py` runs and watches.
"""
