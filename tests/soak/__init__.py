"""The soak: thousands of builds on a real cluster while everything around them is killed, stopped, cut off and deleted; then the count.

`make soak` runs it for ten minutes, `python -m tests.soak --minutes 60 --seed 7` for longer. It needs what `make e2e` needs, and a crowd.
"""
