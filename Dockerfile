# crabpot's own image: the same for worker, beat, watch and serve; what runs is the command's business.
# Debian 12 in both stages, because the environment made in the first one links to the interpreter of the second: /usr/bin/python3.11.
FROM debian:12-slim AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.11 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && /usr/bin/python3.11 -m venv /opt/crabpot
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
# The locked dependencies first: they change seldom, and are a layer of their own.
COPY requirements.lock /source/
RUN /opt/crabpot/bin/python -m pip install "setuptools>=77" --requirement /source/requirements.lock
COPY pyproject.toml README.md LICENSE /source/
COPY ledger /source/ledger
COPY producer /source/producer
COPY worker /source/worker
RUN /opt/crabpot/bin/python -m pip install --no-deps --no-build-isolation /source \
 && /opt/crabpot/bin/python -m compileall -q /opt/crabpot/lib \
 && /opt/crabpot/bin/python -m pip uninstall --yes setuptools pip

# No shell, no package manager, no root (65532).
FROM gcr.io/distroless/python3-debian12:nonroot
COPY --from=build /opt/crabpot /opt/crabpot
ENV PATH=/opt/crabpot/bin:/usr/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A thousand connections come and go: without these the C library keeps a fifth of their memory for itself (bench/memory.py).
ENV MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=131072
WORKDIR /tmp
ENTRYPOINT []
CMD ["crabpot", "--help"]
