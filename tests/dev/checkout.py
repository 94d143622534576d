"""A copy of ./dev in a folder of its own, whose programs (cmake, ctest, nvcc ...) are stand-ins.

Nothing but the tools that ./dev itself runs is on PATH, so that what the machine has plays no part.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ("awk", "bash", "cat", "chmod", "dirname", "env", "find", "grep", "mkdir", "nproc",
         "rm", "sed", "sh", "sleep", "sort", "tail", "tee")

# Notes its arguments; configuring already makes the demo, building prints one step.
CMAKE = """
printf '%s\\n' "cmake $*" >> "$CALLS"
case $1 in
  --preset)
    mkdir -p "build/$2/bin"
    demo="build/$2/bin/attention_single_gpu"
    printf '#!/bin/sh\\n%s\\n' "${DEMO:-echo \\"the demo of $2, arguments: \\$*\\"}" > "$demo"
    chmod +x "$demo" ;;
  --build)
    case "$*" in
      *' -n') status=0 ;;
      *) status=${BUILD_STATUS:-0} ;;
    esac
    prefix=$(echo "$NINJA_STATUS" | sed 's/%[a-z]/1/g')
    echo "${prefix}Building CXX object a/CMakeFiles/a.dir/a.cpp.o"
    exit "$status" ;;
esac
"""

# `ctest -N` counts tests; a run reports two test programs, one of them with one skipped case.
CTEST = """
printf '%s\\n' "ctest $*" >> "$CALLS"
case " $* " in
  *' -N '*) echo 'Total Tests: 3'; exit 0 ;;
esac
cat > "${GTEST_OUTPUT#xml:}a.xml" <<'END'
<testsuites tests="2" failures="0">
<testcase name="a" result="completed" />
<testcase name="b" result="skipped" />
</testsuites>
END
echo '2/2 Test #2: b ........   Passed    0.10 sec'
echo '100% tests passed, 0 tests failed out of 2'
"""


class Checkout:
    def __init__(self):
        temporary = tempfile.TemporaryDirectory()
        self.remove = temporary.cleanup
        self.root = pathlib.Path(temporary.name)
        self.bin, self.calls = self.root / "path", self.root / "calls"
        # /usr/local/cuda is the one place that PATH does not decide.
        self.cuda = self.root / "usr-local-cuda"
        text = (ROOT / "dev").read_text(encoding="utf-8")
        (self.root / "dev").write_text(text.replace("/usr/local/cuda/bin", f"{self.cuda}/bin"),
                                       encoding="utf-8")
        shutil.copytree(ROOT / "tools", self.root / "tools",
                        ignore=shutil.ignore_patterns("__pycache__"))
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.program("python3", f'exec "{sys.executable}" "$@"')
        self.program("cmake", CMAKE)
        self.program("ctest", CTEST)
        self.program("dpkg-query", "printf 'install ok installed'")
        for name in ("g++", "ninja"):
            self.program(name, "exit 0")

    def program(self, name, text, folder=None):
        """Puts an executable shell script on PATH, or into the folder given."""
        path = pathlib.Path(folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def dev(self, *arguments, **environment):
        """What `./dev ARGUMENT...` prints, with its errors (.stdout), and its exit status."""
        return subprocess.run(
            ["bash", "dev", *arguments], cwd=self.root, text=True, check=False, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": str(self.bin), "CALLS": str(self.calls), "LC_ALL": "C.UTF-8",
                 **environment})

    def called(self, start=""):
        """The calls of cmake and ctest so far that begin with `start`."""
        if not self.calls.exists():
            return []
        return [line for line in self.calls.read_text().splitlines() if line.startswith(start)]
