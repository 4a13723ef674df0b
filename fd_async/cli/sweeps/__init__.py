"""A list of runs, one after another: what `fd-sweep` does around `fd-run` and `fd-eval`.

    document   SWEEP.toml as it was written
    jobs       its runs with seeds, prefix and resolved configurations
    standing   what a run's folder says: not begun, at step N, done, something else
    processes  one command at a time; its last words, and signals passed on
    driving    the runs in order
    telling    the plan before, the numbers after

Invariants:
    * What is done is read from the run folders each time; a sweep keeps no record of its own.
    * A run folder that was made with another configuration is never continued.
    * A run that another starts from has ended, and its checkpoint is there, before the other is started.
"""
