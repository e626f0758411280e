# The command line on a CPU. docs/how-to/docker.md has examples.
FROM python:3.11-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"
WORKDIR /source
COPY constraints.txt ./
# torch first and by itself, so that no other package chooses the build with CUDA.
RUN pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY . ./
# With 1, the build fails if the CPU kernels cannot be compiled.
RUN HF_INTERNIMAGE_BUILD_CPU=1 pip install --constraint constraints.txt ".[train]"

# Nothing but Python and the environment: no compiler, no package lists, no root. Downloads stay in the mounted folder.
FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 1000 user
COPY --from=build /opt/venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1 HOME=/tmp USER=user HF_HOME=/data/.cache/huggingface
USER 1000
WORKDIR /data
ENTRYPOINT ["hf-internimage"]
CMD ["--help"]
