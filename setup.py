"""Package metadata with version ranges. The tested versions are in requirements.txt.

Not listed, because a package cannot choose them for an existing environment:
  Detectron2  is not on PyPI under its name: `sohes setup` installs it. Phase 1 and label files do not need it.
  OpenCV      opencv-python and opencv-python-headless install the same files, so requiring one would break the other if
              it is installed. Keep the installed one; in a new environment `pip install sohes_d2[opencv]`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "sohes_d2" / "__init__.py").read_text(), re.MULTILINE)[1]
README = ROOT / "README.md"

# Runtime dependencies of Detectron2, which is installed without them.
DETECTRON2_NEEDS = [
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib>=3.5",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

EXTRAS = {
    "opencv": ["opencv-python-headless>=4.7"],
    # Phase 1 on a cluster: sohes label --engine ray
    "ray": ["ray>=2.9"],
    # Refiners of phase 1; `guided` needs neither.
    "crf": ["pydensecrf2"],
    "cascadepsp": ["segmentation-refinement"],
    # COCO evaluation several times faster than pycocotools
    "fast-eval": ["faster-coco-eval>=1.6"],
    # ONNX files: sohes export-onnx writes and checks them, tools/run_onnx.py runs them.
    "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.5"],
    # The tests of the html page use an installed Chromium or Chrome; playwright does not download one by itself.
    "browser": ["playwright>=1.40"],
    # Runs docs/quickstart.ipynb, as the tests do
    "notebook": ["ipykernel>=6", "nbclient>=0.8", "nbformat>=5.7"],
    # Self-supervised backbone pretraining: sohes pretrain
    "pretrain": ["lightly>=1.6"],
    # The photos of the demo are part of scikit-image; reports use matplotlib.
    "report": ["matplotlib>=3.5", "scikit-image>=0.22"],
    # Forest.to_pandas, Forest.to_supervision
    "tables": ["pandas>=2.0", "supervision>=0.20"],
    "dev": ["hypothesis>=6.100", "mypy>=2.0", "pytest>=7", "pytest-xdist>=3", "ruff>=0.6"],
}

CONFIGS = {"sohes_d2.configs": "configs"}
CONFIGS.update({f"sohes_d2.configs.{path.name}": f"configs/{path.name}" for path in ROOT.glob("configs/*/")})

setup(
    name="sohes_d2",
    version=VERSION,
    description="Self-supervised open-world hierarchical entity segmentation (SOHES) in Detectron2",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    author="The SOHES-D2 contributors",
    project_urls={
        "Paper": "https://arxiv.org/abs/2404.12386",
        "Detectron2": "https://github.com/facebookresearch/detectron2",
    },
    keywords=["segmentation", "self-supervised", "hierarchy", "entities", "detectron2", "COCO"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    entry_points={"console_scripts": ["sohes = sohes_d2.cli.main:main"]},
    # The configs are beside the package in the repository, and inside it when installed.
    packages=[*find_packages(include=["sohes_d2", "sohes_d2.*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={
        **{package: ["*.yaml"] for package in CONFIGS},
        "sohes_d2": ["py.typed"],
        "sohes_d2.report": ["assets/*"],
        "sohes_d2.model_zoo": ["*.*", "*/*"],
    },
    # The syntax is that of 3.9; the versions in requirements.txt need 3.11 because of numpy 2.4.
    python_requires=">=3.9",
    install_requires=[
        "filelock>=3.12",
        "huggingface-hub>=0.20",
        "msgspec>=0.18",
        "numba>=0.57",
        "numpy>=1.24",
        "pillow>=10.1",
        "pycocotools>=2.0.6",
        "safetensors>=0.4",
        "scipy>=1.10",
        "timm>=1.0",
        "torch>=2.5",
        "torchvision>=0.20",
        "tqdm>=4.60",
        *DETECTRON2_NEEDS,
    ],
    extras_require=EXTRAS,
)
