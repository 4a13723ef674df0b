"""What attempts say about a policy. Pure functions, no I/O.

passk      pass@k of statements and its interval
discovery  distinct lemmas and tactics of accepted proofs
words      how often the policy voices doubt
leak       how much of a feedback stands in proofs
"""
