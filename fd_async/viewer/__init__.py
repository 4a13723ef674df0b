"""Reads a run folder and shows it. Never imports torch and never changes the run.

summary   facts, totals and how the run stands; from curves (metrics) and accounts (tokens, money, time)
attempts  one attempt as the page reads it
assets    script, style and templates, shared by both pages
report    the static page: write_report
server    the live page: serve
figures   the paper's figures
"""
