# An image with the code and its packages, for GKE, Compute Engine or any host with Docker.
#
#   docker build --build-arg ACCELERATOR=tpu --tag REGION-docker.pkg.dev/PROJECT/REPOSITORY/cpt_jax .
#
# ACCELERATOR: tpu, cuda13 or cuda12 (extras of the jax package), or cpu.
FROM python:3.13-slim-bookworm
ARG ACCELERATOR=tpu
WORKDIR /cpt_jax
# The packages first: a change of the code does not install them again.
COPY requirements.txt ./
COPY requirements requirements
RUN case "$ACCELERATOR" in cpu) jax=jax ;; *) jax="jax[$ACCELERATOR]" ;; esac \
    && pip install --no-cache-dir --requirement requirements.txt --requirement requirements/gcs.txt \
        "$jax"
COPY pyproject.toml README.md ./
COPY cpt_jax cpt_jax
COPY configs configs
COPY launch launch
RUN pip install --no-cache-dir --no-deps --editable .
ENTRYPOINT ["python", "-u"]
CMD ["launch/train.py", "--help"]
