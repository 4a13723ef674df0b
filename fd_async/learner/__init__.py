"""The learner: DeepSpeed rank processes and the controller's side of the link to them.

`client` starts and drives them (no torch in the controller), `link` is the wire, `split` divides a batch,
`checkpoints` knows what lies in a checkpoint. The rest runs inside a rank: `rank` (process), `model` (weights and
engine), `batching` (tensors), `trainer` (one gradient step), `weights` (staging, saving, export), `audit`.
"""
