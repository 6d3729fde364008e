"""Retention: which images of a registry may go, decided so that nothing that is used, or part of what is used, ever does.

`inventory` is what a registry holds and `survey` reads it; `policy` and `keeping` say why a tag stays, `protection` what hangs together;
`running` says what a cluster's objects need, which `inquiries` asks for; `plan` decides, and `decisions` is what is stored, read and approved. All of
these but `survey` and `inquiries` are pure.
"""
