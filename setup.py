import pathlib
import re

from setuptools import setup

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "speval" / "__init__.py").read_text())

setup(
    name="speval",
    version=version.group(1),
    description="Simple parallel function evaluator: a function, a list of arguments, one sqlite3 file",
    long_description=(here / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="Dmitrii Torbunov and the speval developers",
    license="MIT",
    packages=["speval", "speval.database", "speval.process", "speval.view"],
    package_data={"speval": ["py.typed"]},
    python_requires=">=3.9",
    install_requires=[],
    entry_points={"console_scripts": ["speval = speval.cli:main"]},
    extras_require={
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "coverage>=7.10",
            "numpy",
            "ipykernel",
            "tqdm",
            "matplotlib",
            "ruff",
            "mypy",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Typing :: Typed",
    ],
)
