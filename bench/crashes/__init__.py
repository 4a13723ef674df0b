"""What `bench.crash_resume` kills: runs of the real control plane, whose neighbours are stand-ins with a memory.

plans      what every attempt will sample, write and get: functions of its ticket alone
standins   engine, renderer, verifier, learner, and a buyer of feedback
seller     who sells feedback, outside of what is killed
calls      what was sold, and which of it the ledger must have
life       one process of a run, from its start or resume to its end or death
history    what must hold of ledger and learner afterwards, and of attempts that were under way at a kill
real       the same to vLLM, the small checker and DeepSpeed
"""
