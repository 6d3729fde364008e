"""Collecting a registry's garbage without losing what is pushed: stop the pushers, prove the registry read-only, sweep, prove again, verify.

`steps` decides and `running` does: each step is written down before it is begun, and may be killed and done again. `judging` reads what a dry
run would delete, `reading` reads what tags need (in `pieces`), and `verifying` reads it back. A `Site` is where a registry runs: `kubernetes` (with `workload` and
`launched`) or `local`.
"""
