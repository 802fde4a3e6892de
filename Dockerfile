# Images for clusters. From the repository's root:
#   docker build --target worker   -t IMAGE .                            workers of Dataflow
#   docker build --target cluster  -t IMAGE .                            workers of Flink and Spark: no root
#   docker build --target template -t IMAGE --build-arg STAGE=extract .  the launcher of a Flex Template
# --build-arg EXTRAS=gcp,hf chooses what else is installed, see extras_require in setup.py.

ARG PYTHON=3.11
ARG BEAM=2.77.0
# Google names no version of it that stays: give one by its digest, NAME@sha256:…, where builds must repeat.
ARG LAUNCHER=gcr.io/dataflow-templates-base/python311-template-launcher-base:latest

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam

FROM ${LAUNCHER} AS launcher

# The wheel alone goes on: beside its sources, Python would import those.
FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY setup.py pyproject.toml README.md ./
COPY mmembed mmembed
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS worker
ARG EXTRAS=gcp,onnx
COPY docker/constraints.txt /opt/mmembed/
COPY --from=wheel /wheels /opt/mmembed/wheels
RUN pip install --no-cache-dir --constraint /opt/mmembed/constraints.txt "$(ls /opt/mmembed/wheels/*.whl)[${EXTRAS}]" \
    && pip check
# Weights of models: `--image-encoder onnx:/opt/models/NAME.onnx`, and the cache of the Hugging Face hub.
COPY docker/models /opt/models
ENV HF_HOME=/opt/models/huggingface HF_HUB_OFFLINE=1
COPY --from=beam /opt/apache/beam /opt/apache/beam
# All is installed: a worker that made itself a virtual environment first would start later.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
# As root: Dataflow mounts folders of root's into the container, which Beam's boot program writes to.
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM worker AS cluster
RUN useradd --create-home beam
USER beam

# As root too: the launcher writes its log to /var/log.
FROM worker AS template
ARG STAGE=extract
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY pipelines /opt/template/pipelines
ENV MMEMBED_STAGE=${STAGE} FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/template/pipelines/template.py
ENTRYPOINT ["/opt/google/dataflow/python_template_launcher"]
