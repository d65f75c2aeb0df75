# v2v in a container, for a processor or for an NVIDIA GPU. docs/containers.md says how to use them.
#
#   docker build --target cpu  -t v2v .
#   docker build --target cuda -t v2v:cuda .

ARG PYTHON=python:3.12-slim-bookworm
# With CUDA's compiler: engines are made on the GPU that runs them.
ARG CUDA=nvidia/cuda:13.0.1-devel-ubuntu24.04

# The wheel ---------------------------------------------------------------------------------------------------
FROM ${PYTHON} AS wheel
WORKDIR /src
COPY . .
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# For a processor ---------------------------------------------------------------------------------------------
FROM ${PYTHON} AS cpu
# "web" adds the page, "serve" the service: --build-arg EXTRAS=web
ARG EXTRAS=
RUN useradd --create-home --uid 1000 v2v \
    && mkdir /engines /work \
    && chown v2v:v2v /engines /work
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m venv /opt/v2v \
    && /opt/v2v/bin/pip install --no-cache-dir "v2v[${EXTRAS}] @ file://$(echo /wheels/v2v-*.whl)"
ENV PATH=/opt/v2v/bin:$PATH \
    V2V_ENGINES=/engines
USER 1000:1000
WORKDIR /work
VOLUME /engines
ENTRYPOINT ["v2v-run"]
CMD ["--help"]

# For an NVIDIA GPU -------------------------------------------------------------------------------------------
FROM ${CUDA} AS cuda
ARG EXTRAS=inductor
# Python's headers are for Triton, which compiles small programs when engines are built.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /engines /work \
    && chown 1000:1000 /engines /work
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m venv /opt/v2v \
    && /opt/v2v/bin/pip install --no-cache-dir "v2v[${EXTRAS}] @ file://$(echo /wheels/v2v-*.whl)"
# "video" gives the encoders of the GPU.
ENV PATH=/opt/v2v/bin:$PATH \
    V2V_ENGINES=/engines \
    HOME=/work \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 1000:1000
WORKDIR /work
VOLUME /engines
ENTRYPOINT ["v2v-run"]
CMD ["--help"]
