# Two images from one file: `service` serves the checkpoint that ships with it, without torch; `training` makes others, and is the same and
# torch beside it.
#
#   docker build --target service --tag folio-service .
#   docker build --target training --tag folio-training .
#
# The driver is the host's, and all of CUDA that is needed comes with Python's packages, so NVIDIA's smallest base image is enough; any Debian
# or Ubuntu with Python 3.11 or newer will do instead.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

# Python and a user who owns nothing but caches and runs.
FROM ${BASE_IMAGE} AS python
ARG DEBIAN_FRONTEND=noninteractive
RUN printf 'path-exclude=%s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' > /etc/dpkg/dpkg.cfg.d/small \
 && apt-get update \
 && apt-get install --yes --no-install-recommends python3 tini \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home folio \
 && install --directory --owner folio --group folio /home/folio /folio /folio/runs

# What the package needs, and what builds it, as lists: the layer below is made again when they change, not whenever pyproject.toml does.
FROM python AS requirements
WORKDIR /requirements
COPY pyproject.toml .
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
    print(*p['build-system']['requires'], sep='\n', file=open('build.txt', 'w')); \
    needed, extras = p['project']['dependencies'], p['project']['optional-dependencies']; \
    torch = [line for line in needed if line.startswith('torch')]; \
    print(*[line for line in needed if line not in torch], *extras['otel'], *extras['cuda'], sep='\n', file=open('service.txt', 'w')); \
    print(*torch, *extras['train'], sep='\n', file=open('training.txt', 'w'))"

# The service's environment. pip stays outside it, and so out of the images.
FROM python AS dependencies
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv
COPY --from=requirements /requirements/*.txt /requirements/
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,required=false --mount=type=cache,target=/root/.cache/pip \
    /opt/pip/bin/pip install --requirement /requirements/build.txt \
 && /opt/pip/bin/pip --python /opt/venv install --requirement /requirements/service.txt

# Training's: torch on top, but for its C++ headers and its own tests.
FROM dependencies AS training-dependencies
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,required=false --mount=type=cache,target=/root/.cache/pip \
    /opt/pip/bin/pip --python /opt/venv install --requirement /requirements/training.txt \
 && rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test \
 && find /opt/venv/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete

# Our own code, in a directory of its own, so that a change of it leaves the environment's layer as it is. gcc makes the CPU's kernels, for
# every instruction set at once, and NVRTC those of every GPU architecture for the shipped checkpoint, before the rest of the code is there:
# a change elsewhere builds neither again. gcc stays outside the images.
FROM dependencies AS code
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY model model
COPY service/worker/cuda service/worker/cuda
COPY service/worker/kernels service/worker/kernels
RUN PYTHONPATH=. /opt/venv/bin/python -m service.worker.cuda.cubins \
 && /opt/venv/bin/python service/worker/kernels/build.py
COPY service service
COPY training training
COPY pyproject.toml hatch_build.py README.md LICENSE ./
RUN /opt/pip/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /opt/pip/bin/pip --python /opt/venv install --no-deps --target /app /wheel/*.whl

FROM python AS runtime
COPY --from=code /app /app
ENV PATH=/opt/venv/bin:/app/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/home/folio
WORKDIR /folio
USER 10001:10001
STOPSIGNAL SIGTERM
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Folio" \
      org.opencontainers.image.description="Train a small Transformer and serve it: the same bytes for the same seed" \
      org.opencontainers.image.licenses="MIT AND OFL-1.1" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS training
COPY --from=training-dependencies /opt/venv /opt/venv
ENTRYPOINT ["tini", "--", "python", "-m", "training"]

# A container has no loopback that anyone else could reach: who may connect is decided where its port is published.
FROM runtime AS service
COPY --from=dependencies /opt/venv /opt/venv
ENV FOLIO_HOST=0.0.0.0 FOLIO_PORT=8000 FOLIO_ALLOW_ANONYMOUS=1
COPY deploy/healthcheck.py /usr/local/bin/healthcheck
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --start-interval=1s CMD ["python", "/usr/local/bin/healthcheck"]
EXPOSE 8000
ENTRYPOINT ["tini", "--", "python", "-m", "service"]
