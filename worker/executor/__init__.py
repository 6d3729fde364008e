"""A program that takes Kaniko's flags and builds with Buildah, for machines without a cluster: `python -m worker.executor`.

It keeps Kaniko's promises to crabpot: its flags, its exit codes, its words where crabpot reads them, and a digest in `--digest-file` only
for an image that was made. A flag that it cannot honour is an error that says so. Build it once and throw it away: each run has storage
of its own, as a pod has. It runs as root, in a chroot: a Dockerfile is as trusted as the machine's own scripts.
"""
