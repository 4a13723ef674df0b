"""Feedback on finished attempts: from a model, a known proof, the compiler, or a constant.

Opened with `fd_async.feedback.provider.open_provider`. Importing this package imports no SDK.
"""
