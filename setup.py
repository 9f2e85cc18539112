"""Builds grokfast._C from csrc/ with pybind11 and ninja; no torch at build time. Everything else is in pyproject.toml.

GROKFAST_CUDA=auto (default) compiles csrc/cuda when nvcc is found and works, 0 never, 1 fails without it.
If the extension cannot be built at all, the installation still succeeds, on plain PyTorch; `grokfast doctor` says why.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if sys.version_info < (3, 11):  # noqa: UP036 - pip says that the constraints conflict before it says this
    sys.exit(f"grokfast needs Python 3.11 or later, this is {sys.version.partition(' ')[0]}")

ROOT = Path(__file__).parent
CPU_SOURCES = [
    "csrc/bindings.cpp",
    "csrc/cpu/update.cpp",
    "csrc/cpu/pair_embed.cpp",
    "csrc/cpu/classify.cpp",
    "csrc/cpu/active_products.cpp",
    "csrc/cpu/pair_rows.cpp",
    "csrc/cpu/rows.cpp",
    "csrc/cpu/residual_norm.cpp",
    "csrc/cpu/gathered_attention.cpp",
    "csrc/cpu/mixed_rows.cpp",
    "csrc/cpu/mlp_rows.cpp",
    "csrc/cpu/products.cpp",
    "csrc/cpu/row_loss.cpp",
    "csrc/cuda/update_like_cuda.cpp",
]
CUDA_SOURCES = ["csrc/cuda/update.cu"]
CUDA_ARCHITECTURES = ["80", "90", "100", "120"]
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall"]


class BuildError(RuntimeError):
    """The extension cannot be built; the message is for the user."""


def compiler() -> list[str]:
    """The C++ compiler: $CXX, or the first of c++, g++, clang++."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    for candidate in candidates:
        words = shlex.split(candidate)
        if words and shutil.which(words[0]):
            return words
    raise BuildError(f"no C++ compiler found (looked for {', '.join(candidates)})")


def openmp_flags(cxx: list[str]) -> list[str]:
    """-fopenmp where it compiles and links; without it the kernels run on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [*cxx, "-fopenmp", str(source), "-o", str(Path(folder, "try"))]
        works = subprocess.run(command, capture_output=True, check=False).returncode == 0
    return ["-fopenmp"] if works else []


def cuda_toolkit() -> Path | None:
    """The toolkit's root, as nvcc itself says it (nvcc may be a wrapper script); None where there is no nvcc."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin")
    if nvcc is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "empty.cu").touch()
        said = subprocess.run([nvcc, "--dryrun", "empty.cu"], cwd=folder, capture_output=True, text=True, check=False)
    for line in said.stderr.splitlines():
        key, _, value = line.removeprefix("#$ ").partition("=")
        if key.strip() == "TOP" and value:
            return Path(value.strip()).resolve()
    return None


def ninja_file(cxx: list[str], target: Path, objects: Path, toolkit: Path | None) -> str:
    """The build plan: one object per source, one shared library."""
    import pybind11

    openmp = openmp_flags(cxx)
    include = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = [*CXX_FLAGS, *openmp, *(f"-I{path}" for path in include)]
    link = ["-shared", *openmp]
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    lines = []
    if toolkit is not None:
        flags.append("-DGROKFAST_WITH_CUDA")
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
        codes.append(f"-gencode=arch=compute_{CUDA_ARCHITECTURES[-1]},code=compute_{CUDA_ARCHITECTURES[-1]}")
        nvcc_flags = ["-std=c++17", "-O3", "-DGROKFAST_WITH_CUDA", "-Xcompiler=-fPIC,-fvisibility=hidden", *codes]
        libraries = next((toolkit / name for name in ("lib64", "lib") if (toolkit / name).is_dir()), toolkit)
        link += [f"-L{libraries}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        nvcc = [str(toolkit / "bin" / "nvcc"), "-ccbin", cxx[0]]
        lines += [f"rule cuda\n  command = {shlex.join([*nvcc, *nvcc_flags])} -MD -MF $out.d -c $in -o $out"]
        lines += ["  depfile = $out.d\n  deps = gcc"]
    lines += [f"rule cxx\n  command = {shlex.join([*cxx, *flags])} -MD -MF $out.d -c $in -o $out"]
    lines += ["  depfile = $out.d\n  deps = gcc"]
    lines += [f"rule link\n  command = {shlex.join(cxx)} $in {shlex.join(link)} -o $out"]
    outputs = []
    for source in (CUDA_SOURCES if toolkit else []) + CPU_SOURCES:  # an nvcc that fails does so at once
        output = objects / (source.replace("/", "_") + ".o")
        rule = "cuda" if source.endswith(".cu") else "cxx"
        lines.append(f"build {escape(output)}: {rule} {escape(ROOT.resolve() / source)}")
        outputs.append(escape(output))
    lines.append(f"build {escape(target)}: link {' '.join(outputs)}")
    return "\n".join(lines) + "\n"


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def run_ninja(plan: str, folder: Path) -> None:
    import ninja

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(plan)
    built = subprocess.run([str(Path(ninja.BIN_DIR, "ninja"))], cwd=folder, capture_output=True, text=True, check=False)
    if built.returncode:
        raise BuildError(f"the compiler failed:\n{built.stdout}{built.stderr}")


class BuildExtension(build_ext):
    """Runs ninja; a failure is a message and a note for `grokfast doctor`, unless CUDA was demanded."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        wish = os.environ.get("GROKFAST_CUDA", "auto")
        if wish not in ("0", "1", "auto"):
            raise SystemExit(f"GROKFAST_CUDA must be '0', '1' or 'auto', got {wish!r}")
        info = {"extension": False, "cuda": False, "why": ""}
        try:
            toolkit = None if wish == "0" else cuda_toolkit()
            if wish == "1" and toolkit is None:
                raise BuildError("GROKFAST_CUDA=1, but nvcc was not found (set PATH or CUDA_HOME)")
            info["why"] = {"0": "GROKFAST_CUDA=0"}.get(wish, "" if toolkit else "nvcc was not found")
            try:
                self.compile(target, toolkit)
            except BuildError as error:
                if toolkit is None or wish == "1":
                    raise
                info["why"] = f"nvcc at {toolkit} failed, built without CUDA: {error}"
                toolkit = None
                self.compile(target, None)
            info |= {"extension": True, "cuda": toolkit is not None}
        except (BuildError, ImportError, OSError) as error:
            if wish == "1":
                raise SystemExit(f"grokfast: {error}") from error
            target.unlink(missing_ok=True)
            info["why"] = str(error)
            self.warn(f"grokfast._C was not built, everything will run on plain PyTorch: {error}")
        (target.parent / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")

    def compile(self, target: Path, toolkit: Path | None) -> None:
        folder = Path(self.build_temp).resolve() / ("cuda" if toolkit else "cpu")
        run_ninja(ninja_file(compiler(), target, folder, toolkit), folder)

    def copy_extensions_to_source(self) -> None:
        """An editable installation: the note goes beside the sources, too, and no older extension stays there."""
        super().copy_extensions_to_source()
        built, inplace = Path(self.build_lib, "grokfast"), Path(self.get_ext_fullpath("grokfast._C"))
        if not (built / inplace.name).exists():
            inplace.unlink(missing_ok=True)
        shutil.copy(built / "_build_info.json", inplace.parent)


setup(
    ext_modules=[Extension("grokfast._C", [*CPU_SOURCES], optional=True)],
    cmdclass={"build_ext": BuildExtension},
)
