# The command `sohes` in a container.
#     docker build -t sohes .                                        # CPU
#     docker build -t sohes --build-arg TORCH=cu130 .                # CUDA; run it with --gpus all
#     docker run --rm -v "$PWD:/data" sohes label --config joint --images photos --output labels.json
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# Build of torch: cpu, or a CUDA version as named on https://download.pytorch.org/whl, such as cu130.
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# Ordered by how rarely they change. The tested versions are constraints; only required packages are installed.
WORKDIR /opt/sohes
COPY requirements.txt ./
RUN grep -E '^(torch|torchvision)==' requirements.txt > torch.txt \
    && pip install --requirement torch.txt --index-url "https://download.pytorch.org/whl/${TORCH}" \
        --extra-index-url https://pypi.org/simple \
    && pip install --constraint requirements.txt setuptools
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY sohes_d2 sohes_d2
RUN pip install --constraint requirements.txt --no-build-isolation '.[opencv,fast-eval]'
RUN sohes setup --source sdist \
    && useradd --create-home --uid 1000 sohes && mkdir -p /data && chown sohes /data
USER 1000
RUN sohes doctor

WORKDIR /data
ENTRYPOINT ["sohes"]
CMD ["--help"]
