# GPU image: docker build -t fd-async . && docker run --init --gpus all --shm-size 64g --stop-timeout 600 $SANDBOX
#   -v $PWD/runs:/app/runs -v $PWD/data:/app/data -v fd-cache:/cache -e ANTHROPIC_API_KEY
#   fd-async bin/fd-continue --config configs/qwen35_fd.toml --set run.shutdown_s=540
# SANDBOX="--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined":
#   Docker's own filters forbid the namespaces in which bubblewrap locks Lean; without them the run refuses to start.
# compose.yaml says the same. Lean and Mathlib alone (no GPU): docker build --target lean .
# --shm-size must hold two copies of the weights where policy.push = "shm"; bin/fd-check says how much that is.
# Runs as uid 10001: let it write to runs/ (chown 10001 runs), or add --user "$(id -u):$(id -g)".
# Offline: -e HF_HUB_OFFLINE=1 -v $HOME/.cache/huggingface:/cache/huggingface:ro. No key is in the image.

# A newer base: docker buildx imagetools inspect IMAGE:TAG prints the digest to put here.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7

# Lean: toolchain, REPL and Mathlib's compiled cache. The path is the one of the last stage, Lake remembers it.
FROM ubuntu:24.04@sha256:224a1869083a311ef3f13648a154ba79832fbef6364d31493642ca03082da254 AS lean
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl git \
    && rm -rf /var/lib/apt/lists/*
ENV ELAN_HOME=/opt/elan PATH=/opt/elan/bin:$PATH
WORKDIR /app/lean
COPY lean/ ./
# The archives of the cache are unpacked; nobody needs them again.
RUN ./setup && rm -rf /root/.cache/mathlib

# Python packages from the lock; the compiler is for DeepSpeed, which ships as source.
FROM ${CUDA_IMAGE} AS python
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates g++ python3.12 python3.12-dev python3.12-venv && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/venv
COPY requirements/gpu.txt /tmp/gpu.txt
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/gpu.txt \
    && echo /app > /opt/venv/lib/python3.12/site-packages/fd_async_checkout.pth

# At run time Triton calls gcc with Python's headers, torch.compile may call g++; nothing calls nvcc (docs/gpu_node.md).
FROM ${CUDA_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends \
    bubblewrap ca-certificates g++ python3.12 python3.12-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --no-create-home --home-dir /cache --uid 10001 fd
# Caches of any user go to /cache; libraries ask for a name and a home they can write to, which a uid given by --user
# lacks: FlashInfer, which vLLM imports whether it uses it or not, makes a folder there.
ENV VIRTUAL_ENV=/opt/venv ELAN_HOME=/opt/elan PATH=/opt/venv/bin:/opt/elan/bin:$PATH LOGNAME=fd HOME=/cache \
    HF_HOME=/cache/huggingface VLLM_CACHE_ROOT=/cache/vllm TRITON_CACHE_DIR=/cache/triton
COPY --from=python /opt/venv /opt/venv
COPY --from=lean /opt/elan /opt/elan
COPY --from=lean --chown=10001:10001 /app/lean/.lake /app/lean/.lake
COPY . /app
WORKDIR /app
RUN python -m compileall -q fd_async && install -d -m 1777 /cache runs data
USER 10001:10001
# Is the run alive, by its own pulse? 0.2 s of one core; GPUs, ports and memory are the run's while it goes.
HEALTHCHECK --interval=60s --timeout=15s --start-period=60s --retries=3 CMD ["bin/fd-check", "--health"]
CMD ["bin/fd-run", "--help"]
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="fd_async" \
    org.opencontainers.image.description="Asynchronous Feedback Distillation for Lean 4 provers" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
