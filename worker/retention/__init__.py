"""Retention: which images of a registry may go, decided so that nothing that is used, or part of what is used, ever does.

`inventory` is what a registry holds and `survey` reads it; `policy` and `keeping` say why a tag stays, `protection` what hangs together;
`plan` decides, and `decisions` is what is stored, read and approved. All but `survey` is pure.
"""
