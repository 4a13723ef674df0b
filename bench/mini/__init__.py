"""The parts of `python -m bench.mini_paper`.

conditions  what is run: configurations, sizes, expected minutes
running     one run after another on one engine; finished ones are kept, killed ones go on
asking      what the tiny model answers when it is asked for feedback itself
curves      rows of metrics to figures
comparing   a difference over seeds, and whether it counts
claims      the paper's claims, each with a criterion in code
figures     which curves stand in which figure, and how each condition looks
table       the claims as rows: for the page, and as Markdown
page        index.html
"""
