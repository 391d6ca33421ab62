"""The compiled kernels: optional, so that an install without a compiler goes on in pure torch.

One file for each instruction set, compiled side by side. GCONV_CFLAGS adds options of the compiler, which is $CC:
`make sanitize` builds with those of the sanitizers. A build by clang (whose OpenMP is the package libomp-dev) beside
the one that is installed is tested by

    CC=clang python setup.py build_ext --build-lib build/clang --build-temp build/clang/temp
    GCONV_KERNELS_LIBRARY=$(ls build/clang/gconv/kernels/_csr*.so) python -m pytest tests/test_kernels.py
"""

import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("gconv/kernels")
OPTIONS = shlex.split(os.environ.get("GCONV_CFLAGS", ""))


class BuildKernels(build_ext):
    """Compiles the files of an extension side by side, and says what takes so long."""

    def build_extension(self, ext: Extension) -> None:
        compiler, began = self.compiler, time.time()
        compile_all = compiler.compile

        def compile_each(sources: list[str], *args: object, **options: object) -> list[str]:
            print(f"compiling {', '.join(sources)}: one to two minutes on two cores", flush=True)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                each = [pool.submit(compile_all, [source], *args, **options) for source in sources]
                return [name for one in each for name in one.result()]

        compiler.compile = compile_each
        try:
            super().build_extension(ext)
        finally:
            compiler.compile = compile_all
        print(f"compiled gconv's kernels in {time.time() - began:.0f} s", flush=True)


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            "gconv.kernels._csr",
            sources=[str(path) for path in sorted(KERNELS.glob("csr*.c"))],
            depends=[str(path) for path in sorted(KERNELS.glob("csr*.h"))],
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-fopenmp", *OPTIONS],
            extra_link_args=["-fopenmp", *OPTIONS],
            optional=True,
        )
    ],
)
