# Build and run with `make image` and `make image-run`.
# Python from a slim base pinned by digest; TensorFlow and CUDA from hash-checked wheels, whose cuDNN fits.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba
FROM ${PYTHON_IMAGE}

ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    KERAS_BACKEND=tensorflow \
    TF_FORCE_GPU_ALLOW_GROWTH=true

# A user of its own; /work/mlruns is writable for any user id, since the one of a mounted folder's owner is passed in.
RUN useradd --create-home --uid 1000 forge \
 && mkdir -p /work/experiments /work/mlruns \
 && chmod 1777 /work/mlruns \
 && python3 -m venv /opt/venv

# Dependencies first: this layer of several GB is built again only when the lock changes.
ARG LOCK=requirements-gpu.lock
WORKDIR /opt/forge-sweep
COPY ${LOCK} ./
RUN pip install --require-hashes --only-binary :all: -r ${LOCK}

# The build backend is in the lock, so nothing is fetched here.
COPY pyproject.toml README.md LICENSE ./
COPY forge_sweep forge_sweep
RUN pip install --no-build-isolation --no-deps --no-index .

USER forge
WORKDIR /work
# FORGE_SWEEP_IMAGE_DIGEST comes from `make image-run`: an image cannot hold its own digest.
ENTRYPOINT ["forge-sweep"]
CMD ["--help"]
