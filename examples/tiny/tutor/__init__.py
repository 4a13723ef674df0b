"""A tutor for the tiny world that is asked as Claude is: over HTTP, by the official SDK, about an attempt it has read.

It shows the whole path of a run with `feedback.type = "anthropic"` without a key: prompt, HTTP, limits, answer check,
ledger. Where Claude reasons, this tutor looks the statement's shape up; it never sees a known proof.

    formulas    Lean formulas of the tiny world as trees
    knowledge   which recipe proves a statement, from its shape
    directives  what to say about an attempt
    server      the Messages API
"""
