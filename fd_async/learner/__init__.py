"""The learner: DeepSpeed rank processes and the controller's side of the link to them.

`client` starts and drives them (no torch in the controller), `link` is the wire, `split` divides a batch,
`checkpoints` knows what lies in a checkpoint. The rest runs inside a rank: `entry` and `rank` (process), `model`,
`engine`, `shards` and `shadow` (weights, optimizer, teacher), `batching` and `packing` (tensors), `objectives` and
`trainer` (one gradient step), `staging` and `sending` (pushes), `saving`, `store` and `export` (files), `audit`.
"""
