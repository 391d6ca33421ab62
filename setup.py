"""The compiled kernels: optional, so that an install without a compiler goes on in pure torch."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "gconv.kernels._csr",
            sources=["gconv/kernels/csr.c"],
            depends=[
                f"gconv/kernels/csr_{part}.h"
                for part in (
                    "isa",
                    "type",
                    "rows",
                    "edges",
                    "attend",
                    "attend_rows",
                    "joint",
                    "max",
                    "scatter",
                    "build",
                )
            ],
            extra_compile_args=["-O3", "-std=gnu11", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
