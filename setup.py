"""Build the optional native module; everything else is in pyproject.toml."""

import runpy
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
native = runpy.run_path(str(ROOT / "gitsmart" / "native" / "build.py"))


class BuildNative(build_ext):
    """Plain C for ctypes: one name on every Python, no init function, no Python.h."""

    built = False

    def get_ext_filename(self, fullname: str) -> str:
        return "/".join(fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            self.built = native["build"](Path(self.get_ext_fullpath(ext.name)).absolute(), force=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the native module can't be built, gitsmart works without it: {error}")

    def copy_extensions_to_source(self) -> None:
        if self.built:
            super().copy_extensions_to_source()


setup(
    ext_modules=[
        Extension(
            "gitsmart.native._native",
            sources=[str(path.relative_to(ROOT)) for path in native["sources"]()],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
