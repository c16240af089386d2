"""The one list of dependencies. Tool tables are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.10.1,!=0.10.2,<0.12"  # jaxlib 0.10.2 compiles some reductions on CPU wrongly

SERVE = [
    "starlette>=0.46",
    "uvicorn>=0.54",  # WebSockets that wait for a client that does not read
    "websockets>=15",
    "python-multipart>=0.0.20",
    "prometheus-client>=0.21",
]

setup(
    name="tsm-jax",
    version="0.1.0",
    description="Temporal Shift Module for video recognition in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["tsm_jax", "tsm_jax.*"]), "tsm_jax.configs"],
    package_dir={"tsm_jax.configs": "configs"},  # tsm_jax/cli.py finds either place
    package_data={
        "tsm_jax": ["py.typed"],
        "tsm_jax.weights": ["labels/*.txt", "zoo.tsv"],
        "tsm_jax.serving": ["page.html"],
        "tsm_jax.report": ["templates/*.jinja"],
        "tsm_jax.exporting": ["templates/*.jinja", "page/*"],
    },
    entry_points={"console_scripts": ["tsm = tsm_jax.__main__:main"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.6",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "ml_collections>=1.1",
        "absl-py>=2.1",
        "argcomplete>=3.5",
        "numpy>=2.0",
        "scipy>=1.13",
        "av>=15",
        "opencv-python-headless>=5.0",
        "pillow>=11",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "safetensors>=0.5",
        "flatbuffers>=24.3",  # for jax.export
        "tensorflow-datasets>=4.9.9",
        "array_record>=0.8",
        "importlib_resources>=6.4",
        "etils[epath]>=1.12",
        "protobuf>=5.29",
        "rich>=13.7",
    ],
    extras_require={
        "cuda12": [f"jax[cuda12]{JAX}"],
        "cuda13": [f"jax[cuda13]{JAX}"],
        "tpu": [f"jax[tpu]{JAX}"],
        "ray": ["ray>=2.60"],
        "ray-jobs": ["ray[default]>=2.60"],  # with the server that KubeRay sends a job to
        # A peer that benchmarks/data_pipeline.py measures beside PyAV.
        "benchmark": ["decord2>=3.4; platform_machine in 'x86_64 AMD64 arm64 aarch64'"],
        "export": ["onnx>=1.17", "onnxruntime>=1.20"],
        "hub": ["huggingface_hub>=1.0"],
        "serve": SERVE,
        "openvino": ["openvino>=2025.0"],
        "wandb": ["wandb>=0.19"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        "test": [
            "build>=1.2",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.7",
            "pyyaml>=6.0",
            "markdown-it-py>=3.0",
            "ruff>=0.14",
            "pyright>=1.1.400",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "huggingface_hub>=1.0",
            "tensorboardX>=2.6.4",  # whose messages read what ours have written
            *SERVE,
        ],
    },
)
