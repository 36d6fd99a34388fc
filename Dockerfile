# stagedkd in a container. The packages are those of requirements.txt, each checked against its hash there.
#
#   docker build -t stagedkd .                                        # torch with CUDA; it runs on CPUs, too
#   docker build -t stagedkd:cpu --build-arg DEVICE=cpu --build-arg TORCH_INDEX=URL .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/project" stagedkd run specs/quickstart.yaml
#
# docs/docker.md says what is in each image, and how to reach a GPU.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG DEVICE=cuda
ARG TORCH_INDEX=""
ARG EXTRAS=""
ARG UV_VERSION=0.13.9
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Packages of the distribution follow its security updates; what can change a result is pinned in requirements.txt.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}" \
 && /opt/uv/bin/uv venv --python /usr/bin/python3 /opt/stagedkd
ENV PATH=/opt/uv/bin:$PATH VIRTUAL_ENV=/opt/stagedkd UV_LINK_MODE=copy UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /source
COPY pyproject.toml requirements.txt ./
COPY docker/install.sh docker/
RUN bash docker/install.sh "${DEVICE}" "${TORCH_INDEX}" "${EXTRAS}"
COPY README.md LICENSE setup.py ./
COPY docs docs
COPY stagedkd stagedkd
RUN uv pip install --no-deps . && uv pip check

FROM ${BASE}
LABEL org.opencontainers.image.title="stagedkd" \
      org.opencontainers.image.description="Staged knowledge distillation for video classification" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# git is there for DVC, and for the commit that run.json names. The home is open to every user: see --user above.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates git python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home stagedkd \
 && chmod 1777 /home/stagedkd \
 && install --directory --owner stagedkd /project
COPY --from=build /opt/stagedkd /opt/stagedkd
ENV PATH=/opt/stagedkd/bin:$PATH HOME=/home/stagedkd USER=stagedkd \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /project
ENTRYPOINT ["stagedkd"]
CMD ["--help"]
