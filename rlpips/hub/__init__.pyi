from .digests import metric_digest, tensors_digest
from .registry import WeightsEntry, list_weights
from .store import cache_folder, ensure, import_file, path_of, verify
from .tensorfiles import load_tensors, read_metadata

__all__ = [
    "WeightsEntry",
    "cache_folder",
    "ensure",
    "import_file",
    "list_weights",
    "load_tensors",
    "metric_digest",
    "path_of",
    "read_metadata",
    "tensors_digest",
    "verify",
]
