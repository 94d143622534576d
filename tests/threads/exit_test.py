"""Runs exit_while_computing many times: each must end with status 0, whatever its threads did.

    exit_test.py build/cpu/bin/exit_while_computing --runs 100
"""
import argparse
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    failed = 0
    for run in range(options.runs):
        command = [options.program, "--device", options.device, "--milliseconds", str(run % 10)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "skipped: " in result.stderr:
            print(result.stderr.strip())
            return 0
        if result.returncode != 0:
            failed += 1
            print(f"run {run}: status {result.returncode}\n{result.stderr[-2000:]}")
    print(f"{options.runs - failed} of {options.runs} runs ended with status 0")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
