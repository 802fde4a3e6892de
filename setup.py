"""Packaging: the library and its command. `schemas/` and `pipelines/` stay out of the wheel: their names are common."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (HERE / "mmembed/__init__.py").read_text("utf-8"))
assert version is not None

TRAIN = [
    "torch>=2.6,<2.14",  # the models; from 2.14 on it brings 5 GB of GPU libraries wherever it is installed
    "sacrebleu>=2.4",  # BLEU
    "pycocoevalcap>=1.2",  # CIDEr; what of it needs Java is not used
]

SERVE = [
    "fastapi>=0.115",  # the HTTP API; 0.115 is the first that takes a model for a query's parameters
    "uvicorn>=0.30",  # the server
    "httptools>=0.6",  # parses requests in C: uvicorn takes it where it is there
    "python-multipart>=0.0.18",  # uploads; older ones can be kept busy by a malformed form
    "prometheus-client>=0.20",  # /metrics
    "fastapi-offline>=1.7",  # its wheel carries Swagger UI: /docs loads nothing from elsewhere
]

PRIVACY = [
    "presidio-analyzer>=2.2.366,<3",  # recognizers of what is private; earlier ones lack some of the countries
    "phonenumbers>=8.13",  # which phone numbers there are
    "python-stdnum>=2",  # check digits of the countries that presidio lacks
    "tldextract>=5",  # its package carries the list of public suffixes: what an address may end with
]

setup(
    name="mmembed",
    version=version[1],
    description="One embedding space for raw images, texts and sounds: Beam pipelines, learned linear maps, FAISS",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mmembed", "mmembed.*"]),
    package_data={"mmembed": ["py.typed"], "mmembed.serve": ["static/*"]},
    python_requires=">=3.11,<3.15",
    install_requires=[
        "apache-beam>=2.77,<3",  # the pipelines; 2.77 is what the runner's behaviour was measured on
        "pyarrow>=18,<26",  # Parquet; 26 is beyond what Beam takes
        "numpy>=2,<2.5",  # vectors; 2.5 is beyond what Beam takes
        "pillow>=11,<13",  # decoding pictures
        "soundfile>=0.13,<1",  # reading sounds: its wheel carries libsndfile, with MP3
        "soxr>=0.5,<2",  # resampling, also of streams
        "cloudpickle>=2",  # what Beam sends encoders to workers with: `mmembed.testing` tries it
        "braceexpand>=0.1.7",  # inputs like shard-{00000..00099}.tar
        "ImageHash>=4.3",  # near duplicates among pictures
        "datasketch>=2,<3",  # near duplicates among texts; 1 has other hashes
        "py3langid>=0.3",  # filters by language; its model lies in its wheel
        "wordllama==0.4.0.post1",  # its wheel carries the weights of the text encoder; another version, other vectors
        "tokenizers>=0.20",  # reads wordllama's tokenizer
        "safetensors>=0.5",  # reads wordllama's weights; the format of maps/
        "scipy>=1.13",  # leading eigenvectors, isotonic regression
        "faiss-cpu>=1.13,<2",  # the index; before 1.13, 4-bit codes that are mapped into memory find other rows
        "duckdb>=1.4",  # filters of a search as SQL; 1.4 has the expressions that are parsed alone
        "threadpoolctl>=3.5",  # one BLAS thread a process: speed, and the same last bits everywhere
        "tqdm>=4.66",  # the progress bar
    ],
    extras_require={
        "onnx": ["onnxruntime>=1.20"],  # models as ONNX files
        "hf": [
            "transformers>=4.56,<6",  # models of Hugging Face; 4.56 is the first with dtype=
            "torch>=2.4",  # what runs them
        ],
        "serve": SERVE,
        "privacy": PRIVACY,  # --redact; names too where a model of spaCy is installed, such as en_core_web_sm
        "gcp": ["apache-beam[gcp]"],  # gs:// and Dataflow
        "aws": ["apache-beam[aws]"],  # s3://
        "train": TRAIN,  # the programs of examples/ that train
        "dev": [
            *SERVE,
            *PRIVACY,
            "cryptography>=42",  # encryption at rest
            *TRAIN,  # the examples are tested
            "httpx2>=2",  # asks the server in tests
            "playwright>=1.50",  # likewise in a browser: Debian's chromium
            "pytest>=8",
            "pytest-xdist>=3.6",  # the pipelines of the tests on both cores
            "hypothesis>=6.100",  # invariants
            "librosa>=0.11",  # the independent implementation of audio features; too slow to import for a query
            "scikit-learn>=1.5",  # figures checked against an independent implementation
            "ranx>=0.3.20",  # likewise: recall, MRR, MAP and nDCG of retrieval with several right answers
            "cca-zoo>=4,<5",  # the independent implementation of multi-view CCA
            "ruff>=0.8",
            "mypy>=1.13",
            "duckdb>=1.1",  # the README's ways to load the Parquet are tested
            "datasets>=3,<6",  # likewise
            "resvg-py",  # draws the pictures of the real test set
            "moto[server]>=5",  # an S3 server on this machine: remote inputs are tested
            "boto3",  # what Beam reads s3:// with
            "apache-beam[gcp]",  # jobs for Dataflow are made and staged, up to the service's call
            "gcp-storage-emulator",  # gs:// on this machine, likewise
            "onnxruntime>=1.20",  # ONNX models, and silero-vad, which is installed without its dependencies
            "onnx>=1.17",  # makes small models for tests; Beam's handler of ONNX models needs it
            "transformers>=4.56,<6",  # small models with random weights
            "sentence-transformers>=5",  # its adapter is tested
            "jax>=0.6",  # the reader's adapter is tested
            "tensorflow-cpu>=2.20; python_version < '3.14' and platform_machine == 'x86_64'",  # likewise
        ],
    },
    entry_points={"console_scripts": ["mmembed = mmembed.cli:main"]},
)
