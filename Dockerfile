# A slim image with both ways in: `python3 seq2seq.py ...` (the working directory is a checkout) and `workflow ...`.
#
#   docker build -t workflow .                                                   torch's standard build (CUDA inside)
#   docker build -t workflow --build-arg PIP_ARGS="--extra-index-url URL" .      URL: the index of PyTorch's CPU builds
#   docker run --rm -v "$PWD/mount:/workflow/mount" workflow python3 seq2seq.py --model_init_path t5-small --data_name data
#
# No compiler and no CUDA toolkit are needed: the optimizer is torch's own, nothing is compiled when a job starts.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}

ARG PIP_ARGS=""
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/tmp/huggingface \
    WORKFLOW_CACHE=/tmp/workflow-cache \
    TRITON_CACHE_DIR=/tmp/triton

RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home workflow

# Dependencies first: they change less often than the code.
COPY constraints.txt /opt/
RUN python3 -m venv /opt/venv \
 && pip install ${PIP_ARGS} -c /opt/constraints.txt torch==2.13.0

WORKDIR /workflow
COPY pyproject.toml constraints.txt README.md LICENSE seq2seq.py clf.py ./
COPY workflow workflow
COPY configs configs
COPY ds_configs ds_configs
COPY mount mount
RUN pip install ${PIP_ARGS} -c constraints.txt -e . \
 && chown -R workflow mount . \
 && chmod -R a+rwX mount

USER 10001
CMD ["workflow", "--help"]
