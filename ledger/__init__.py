"""The ledger: the record of every build, slot, due time and event in Redis, and the words that all rooms share.

It imports neither the producer nor the worker; both speak to each other only through it.
"""
