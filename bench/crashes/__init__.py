"""What `bench.crash_resume` kills: runs of the real control plane, whose neighbours are stand-ins with a memory.

plans      what every attempt will sample, write and get: functions of its ticket alone
standins   engine, renderer, verifier, learner, and a buyer of feedback
seller     who sells feedback, outside of what is killed
life       one process of a run, from its start or resume to its end or death
history    what must hold of ledger, learner and seller afterwards
"""
