# One image for everything: `python3 seq2seq.py ...`, `python3 clf.py ...`, `workflow serve`, and any other command.
#
#   docker build -t workflow .                                      torch's standard build, which brings CUDA along
#   docker build -t workflow --build-arg ACCELERATOR=cpu --build-arg PIP_ARGS="--extra-index-url URL" .
#                                                                   URL: the index of PyTorch's CPU builds
#   docker run --rm -v "$PWD/mount:/app/mount" workflow python3 seq2seq.py --model_init_path t5-small --data_name data
#
# Everything is pinned. What the public registry offers is checked by hash; a CPU build of torch comes from elsewhere, or is one's
# own, and so has a version only. No compiler and no CUDA toolkit are in the image: the optimizer is torch's own, and nothing is
# compiled or downloaded when a job starts (but models and data that the job names by a hub's name).
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS builder
ARG ACCELERATOR=cuda
ARG PIP_ARGS=""
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    DS_BUILD_OPS=0
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian's versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv

# Dependencies first: they change less often than the code. Source archives are built with what is installed by hash before.
WORKDIR /opt/requirements
COPY constraints.txt requirements ./
# PIP_ARGS holds several words.
# hadolint ignore=SC2086
RUN pip install ${PIP_ARGS} --no-deps --require-hashes -r build.txt \
 && pip install ${PIP_ARGS} --no-deps --require-hashes --no-build-isolation -r image.txt \
 && case "${ACCELERATOR}" in \
      cuda) pip install ${PIP_ARGS} --no-deps --require-hashes -r cuda.txt ;; \
      cpu) pip install ${PIP_ARGS} --no-deps -c constraints.txt torch ;; \
      *) echo "ACCELERATOR is cuda or cpu, not ${ACCELERATOR}" >&2; exit 1 ;; \
    esac

# The package is used where it lies, so that a checkout mounted over /app is what runs.
WORKDIR /app
COPY pyproject.toml README.md LICENSE seq2seq.py clf.py ./
COPY workflow workflow
COPY configs configs
COPY ds_configs ds_configs
COPY mount mount
RUN pip install --no-deps --no-build-isolation --no-index --config-settings editable_mode=compat -e . \
 && pip check \
 && pip uninstall --yes pip \
 && rm -rf ./*.egg-info build \
 && python3 -m compileall -q workflow \
 && find . -type d -exec chmod 755 {} + \
 && find . -type f -exec chmod 644 {} +

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="workflow" \
      org.opencontainers.image.description="Fine-tune T5-family models and models that score, evaluate them honestly, and serve them" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      workflow.sbom="/usr/share/sbom/workflow.cdx.json"
# Caches are under /tmp, which a read-only root leaves to a volume; a home that cannot be written to is looked at by nobody.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/huggingface \
    WORKFLOW_CACHE=/tmp/workflow-cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TORCH_EXTENSIONS_DIR=/tmp/torch-extensions \
    WORKFLOW_SERVE_HOST=0.0.0.0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
 && useradd --uid 10001 --user-group --home-dir /tmp --no-create-home workflow
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /app /app
COPY container /opt/container
RUN mkdir -p /usr/share/sbom \
 && python3 /opt/container/sbom.py workflow "${VERSION}" > /usr/share/sbom/workflow.cdx.json \
 && install -d -o workflow -g workflow /app/mount/models /app/preds

WORKDIR /app
USER 10001
EXPOSE 8000
# tini tells the whole group, so that a program hears of a signal through a shell that stands before it.
ENTRYPOINT ["/usr/bin/tini", "-g", "--"]
CMD ["workflow", "--help"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m --retries=4 CMD ["python3", "/opt/container/healthcheck.py"]
