# syntax=docker/dockerfile:1
# `vitconv serve` in a container. docs/deployment.md says how to build and run it, and what was tried.
#
#   docker build -t vitconv .                                                       for processors
#   docker build -t vitconv:cuda --build-arg TORCH=cu132 .                          for NVIDIA's GPUs
#   docker build -t vitconv:ray --target ray --build-arg EXTRAS=rayserve .          a node of a Ray cluster

ARG PYTHON=3.11

# ---- the environment, built where pip and its caches do no harm ----------------------------------------------------

FROM python:${PYTHON}-slim-bookworm AS build

# What torch computes on: `cpu`, or a CUDA of PyTorch's index. PyPI's torch brings CUDA, 4 GB, to every machine.
ARG TORCH=cpu
# Extras of pyproject.toml, such as `serve,openvino` for a folder that was optimised with OpenVINO.
ARG EXTRAS=serve
# git, which knows vitconv's version, is not in the context.
ARG VERSION=0.1.dev0

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 SETUPTOOLS_SCM_PRETEND_VERSION_FOR_VITCONV=${VERSION}
RUN python -m venv /opt/vitconv
ENV PATH=/opt/vitconv/bin:$PATH
WORKDIR /src

# Both from one index: a +cpu torch beside PyPI's torchvision does not import. A layer of its own: it rarely changes.
COPY requirements.txt .
RUN pip install --extra-index-url "https://download.pytorch.org/whl/${TORCH}" \
        "$(grep '^torch==' requirements.txt)+${TORCH}" "$(grep '^torchvision==' requirements.txt)+${TORCH}"

# The rest in the versions of requirements.txt: names with their versions, for pip takes no extras as constraints.
COPY pyproject.toml README.md LICENSE ./
COPY vitconv vitconv
RUN grep -oE '^[A-Za-z0-9_-]+(\[[a-z,]+\])?==[^ ]+' requirements.txt | sed 's/\[[a-z,]*\]//' > constraints.txt \
    && pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && pip check

# ---- what runs ------------------------------------------------------------------------------------------------------

FROM python:${PYTHON}-slim-bookworm AS run

RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin vitconv
COPY --from=build /opt/vitconv /opt/vitconv
# Nothing phones home. torch's threads sleep while they wait, instead of taking the core of another request.
ENV PATH=/opt/vitconv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 RAY_USAGE_STATS_ENABLED=0 \
    OMP_WAIT_POLICY=PASSIVE
USER 10001:10001
WORKDIR /home/vitconv

# ---- a node of a Ray cluster: KubeRay says what it runs, and its probes need wget -----------------------------------

FROM run AS ray

USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001

# ---- the server: the default ----------------------------------------------------------------------------------------

FROM run AS serve

EXPOSE 8000
# A real inference: a process that answers may still have lost its model.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=9)"]
ENTRYPOINT ["vitconv"]
# Mount the folder of a converted or optimised model at /model.
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
