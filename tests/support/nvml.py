"""Stands in for the driver's libraries of an NVIDIA GPU: a libcuda.so.1 that only can be loaded, and
an NVML whose GPUs are those of the environment variable FAKE_GPUS, "NAME=UUID;NAME=UUID".

An empty FAKE_GPUS is a driver without GPUs, and without it NVML says that no driver runs.
"""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from stand_in import COMPILED

TEXT = r"""
#include <cstdlib>
#include <cstring>
#include <string>
static std::string text;
static int count, started;
static const char* part(int i, char which) {  // the name (n) or UUID of the i-th GPU
    static std::string found;
    size_t a = 0;
    for (int k = 0; k < i; ++k) a = text.find(';', a) + 1;
    std::string one = text.substr(a, text.find(';', a) - a);
    size_t at = one.find('=');
    found = which == 'n' ? one.substr(0, at) : one.substr(at + 1);
    return found.c_str();
}
extern "C" {
int nvmlInit_v2() {
    const char* given = std::getenv("FAKE_GPUS");
    if (!given) return 9;
    text = given;
    count = text.empty() ? 0 : 1;
    for (char c : text) count += c == ';';
    ++started;
    return 0;
}
int nvmlShutdown() { --started; return 0; }
int fake_started() { return started; }
const char* nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : "Unknown"; }
int nvmlDeviceGetCount_v2(unsigned* n) { *n = count; return started ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** handle) {
    *handle = (void*)(size_t)(0x700000000000 + i);  // a handle that 32 bits cannot hold
    return i < (unsigned)count ? 0 : 2;
}
static int copy(void* handle, char which, char* to, unsigned size) {
    std::strncpy(to, part((size_t)handle - 0x700000000000, which), size);
    return 0;
}
int nvmlDeviceGetName(void* handle, char* to, unsigned size) { return copy(handle, 'n', to, size); }
int nvmlDeviceGetUUID(void* handle, char* to, unsigned size) { return copy(handle, 'u', to, size); }
}
"""

# a torch that keeps a GPU's memory on the host
TORCH = """\
import os
from types import SimpleNamespace

import numpy as np

float32 = np.float32


class Tensor(np.ndarray):
    def to(self, dtype):
        return self.astype(dtype) + dtype(os.environ.get("FAKE_ERROR", 0))


def arange(n, device):
    return np.arange(n).view(Tensor)


cuda = SimpleNamespace(device_count=lambda: 1, set_device=int, synchronize=int)
"""


def driver(folder: Path, nvml: bool = True) -> Path:
    """Put the libraries into `folder`, for LD_LIBRARY_PATH; returns NVML's path."""
    shutil.copy(_built(), folder / "libcuda.so.1")
    if nvml:
        shutil.copy(_built(), folder / "libnvidia-ml.so.1")
    return folder / "libnvidia-ml.so.1"


def _built() -> Path:
    library = COMPILED / f"nvml-{hashlib.sha256(TEXT.encode()).hexdigest()}.so"
    if not library.exists():
        COMPILED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=COMPILED) as folder:
            (Path(folder) / "nvml.cpp").write_text(TEXT)
            made = Path(folder) / "nvml.so"
            words = "g++", "-shared", "-fPIC", "-std=c++17", "-o", made, Path(folder) / "nvml.cpp"
            subprocess.run(words, check=True)
            made.replace(library)
    return library


def started(library: Path) -> int:
    """How often this process started NVML and did not end it."""
    return ctypes.CDLL(str(library)).fake_started()
