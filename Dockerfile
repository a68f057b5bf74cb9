# Ondol's images. `server` runs api, reconciler, intake, Flower and `ondol db`, without torch; `worker` runs workers and
# trainers. docker-compose.yml builds both:  docker compose --profile gpu build
#
# Build arguments:
#   PYTHON_IMAGE    the Python image to build on: Python 3.11 or 3.12, Debian
#   TORCH_INDEX     package index of the torch build that is wanted (see PyTorch's own instructions); pip's by default,
#                   whose Linux build is the one for CUDA
#   PIP_INDEX_URL   another package index for everything, such as a mirror of your own
#   EXTRA_PACKAGES  more packages, such as s3fs for a store on S3; their versions are yours to choose

ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/ondol/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1
# The folders exist with their owner, so that a new volume mounted there belongs to the user too.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ondol \
    && install -d -m 0700 -o ondol -g ondol /data /store
WORKDIR /data

FROM base AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY ondol ondol
COPY models_store models_store
COPY workers workers
COPY api api
ARG PIP_INDEX_URL
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM base AS server-packages
ARG PIP_INDEX_URL
ARG EXTRA_PACKAGES
COPY constraints.txt /build/
COPY --from=wheel /wheel /build/wheel
RUN python -m venv /opt/ondol \
    && /opt/ondol/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c /build/constraints.txt \
        "$(echo /build/wheel/ondol-*.whl)[server]" ${EXTRA_PACKAGES}

FROM base AS worker-packages
ARG PIP_INDEX_URL
ARG TORCH_INDEX
ARG EXTRA_PACKAGES
COPY constraints.txt /build/
# Torch in a layer of its own, which a change of our code leaves as it is. Only torch itself comes from its index, what
# it needs comes from pip's with the rest.
RUN python -m venv /opt/ondol \
    && export PIP_INDEX_URL="${TORCH_INDEX:-${PIP_INDEX_URL:-}}" \
    && /opt/ondol/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c /build/constraints.txt --no-deps \
        torch
COPY --from=wheel /wheel /build/wheel
RUN /opt/ondol/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c /build/constraints.txt \
        "$(echo /build/wheel/ondol-*.whl)[all]" ${EXTRA_PACKAGES}

FROM base AS worker
COPY --from=worker-packages /opt/ondol /opt/ondol
USER 10001:10001
CMD ["ondol", "worker"]

# Last, so that it is what is built when no target is named.
FROM base AS server
COPY --from=server-packages /opt/ondol /opt/ondol
USER 10001:10001
EXPOSE 8400
CMD ["ondol", "api"]
