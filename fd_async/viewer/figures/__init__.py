"""The paper's figures for any runs: `fd-report`.

    table     FIGURES: what each figure shows, one declaration each
    runs      labels, run folders, their rows; where a run's steps begin
    curves    one curve per label: mean and band over seeds
    scaling   pass@k of two checkpoints with the same pass@1
    numbers   the table of final and best values
    leaks     how much of a feedback stands in later proofs, from the ledger
    drawing   matplotlib, and nothing else knows it
    page      CSV files and index.html
    attempt   Figure 1 of any attempt
    report    all of it in order

Invariants:
    * Only what a run recorded is drawn. What is missing is named by label and key.
    * The same input gives the same bytes.
    * Run folders are read, never written; a run may go on meanwhile.
"""
