# The `pipeline` command in a container:
#   docker build -t cca-pipeline .
#   docker run --rm -v "$PWD:/data" cca-pipeline compress photo.png photo.cca --model model.safetensors
# For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, then docker run --gpus all.
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY shards shards
COPY recipes recipes
COPY orchestration orchestration
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Triton and DeepSpeed compile small extensions when they first run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY .ci/constraints.txt /constraints.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --constraint /constraints.txt --extra-index-url "$TORCH_INDEX" \
        "$(echo /wheels/*.whl)[peers,s3]" \
    && rm -rf /wheels \
    && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
ENTRYPOINT ["pipeline"]
CMD ["--help"]
