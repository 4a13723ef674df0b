# GPU image: docker build -t fd-async . && docker run --gpus all --shm-size 64g -v $PWD/runs:/app/runs -v $PWD/data:/app/data
#   -e ANTHROPIC_API_KEY $SANDBOX fd-async bin/fd-run --config configs/qwen35_fd.toml
# SANDBOX="--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined":
#   Docker's own filters forbid the namespaces in which bubblewrap locks Lean; without them the run refuses to start.
# Lean and Mathlib alone (no GPU): docker build --target lean .
# --shm-size must hold two copies of the weights where policy.push = "shm". HF_HUB_OFFLINE=1 works with a mounted cache.

ARG CUDA_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

# Lean: toolchain, REPL and Mathlib's compiled cache. The path is the one of the last stage, Lake remembers it.
FROM ubuntu:24.04 AS lean
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl git \
    && rm -rf /var/lib/apt/lists/*
ENV ELAN_HOME=/opt/elan PATH=/opt/elan/bin:$PATH
WORKDIR /app/lean
COPY lean/ ./
RUN ./setup

# Python packages from the lock; the compiler is for DeepSpeed, which ships as source.
FROM ${CUDA_IMAGE} AS python
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates g++ python3.12 python3.12-dev python3.12-venv && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/venv
COPY requirements/gpu.txt /tmp/gpu.txt
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/gpu.txt \
    && echo /app > /opt/venv/lib/python3.12/site-packages/fd_async_checkout.pth

# Triton compiles kernels at run time: it needs a C compiler and Python's headers.
FROM ${CUDA_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends \
    bubblewrap ca-certificates gcc libc6-dev python3.12 python3.12-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 fd
ENV VIRTUAL_ENV=/opt/venv ELAN_HOME=/opt/elan PATH=/opt/venv/bin:/opt/elan/bin:$PATH
COPY --from=python /opt/venv /opt/venv
COPY --from=lean /opt/elan /opt/elan
COPY --chown=fd:fd . /app
COPY --from=lean --chown=fd:fd /app/lean/.lake /app/lean/.lake
COPY --from=lean --chown=fd:fd /app/lean/lake-manifest.json /app/lean/lake-manifest.json
WORKDIR /app
RUN install -d -o fd -g fd runs data
USER fd
CMD ["bin/fd-run", "--help"]
