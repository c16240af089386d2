# syntax=docker/dockerfile:1
# An image that serves an exported folder on a CPU, without jax and the packages for training. From
# the root of the repository:
#
#   docker build -f launch/serve.Dockerfile -t tsm_jax_serve .
#   docker run --read-only --tmpfs /tmp:size=3g --cap-drop ALL --security-opt no-new-privileges \
#       -p 127.0.0.1:8000:8000 -v "$PWD/inference/TSM:/model:ro" tsm_jax_serve
#
# Uploads are stored in /tmp: make it somewhat larger than --max_storage_mb. Arguments after the name
# of the image are passed to `tsm serve`.
FROM python:3.12-slim
# The packages that `tsm serve` imports; the dependencies of tsm_jax include those for training.
RUN pip install --no-cache-dir \
    "numpy>=2.0" "av>=15" "opencv-python-headless>=5.0" "pillow>=11" "safetensors>=0.5" \
    "ml_collections>=1.1" "absl-py>=2.1" "rich>=13.7" \
    "openvino>=2025.0" "onnxruntime>=1.20" \
    "starlette>=0.46" "uvicorn>=0.54" "websockets>=15" "python-multipart>=0.0.20" \
    "prometheus-client>=0.21"
WORKDIR /tsm_jax
COPY setup.py pyproject.toml README.md LICENSE ./
COPY tsm_jax tsm_jax
RUN pip install --no-cache-dir --no-deps -e . && useradd --uid 10001 --no-create-home serve
USER 10001
ENV PYTHONDONTWRITEBYTECODE=1 HOME=/tmp JAX_COMPILATION_CACHE_DIR=""
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# Without a shell, so that Python is process 1 of the container and receives SIGTERM.
ENTRYPOINT ["python", "-u", "-m", "tsm_jax", "serve", "--model", "/model", "--host", "0.0.0.0"]
