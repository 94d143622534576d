"""What the built library holds for which GPU, by cuobjdump; needs no GPU.

Usage: device_code_test.py LIBRARY NVCC ARCHITECTURES, the last those of CMake between commas.
Skips, with status 77, where cuobjdump is neither beside nvcc nor on PATH nor named by CUOBJDUMP.

GPUs of compute capability 10.0 and later run what their driver makes of the PTX of 8.0, so that
every kernel that may be chosen there must have some. In it those that need wgmma are empty, and no
others.
"""
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

# Sources whose kernels size their shared memory: cuda_limits_test.cpp knows what each asks for.
# Those for wgmma, which do too, have none of it in PTX.
SIZES_SHARED_MEMORY = {
    "row_ring_places",  # cuda/device/row_stream.cuh
    "attention_backward_keys", "attention_backward_mask_mma", "attention_backward_mask_tf32x3",
    "attention_backward_queries", "attention_backward_simt",
    "attention_backward_tf32x3_keys", "attention_backward_tf32x3_queries", "attention_mma",
    "attention_simt", "attention_tf32x3", "cross_entropy"}
REGISTERS = 65536  # of a multiprocessor, on every compute capability from 8.0 to 12.0
DECLARED_LIMIT = 48 << 10  # bytes of shared memory that a kernel may declare
SYSTEM_BYTES = 1024  # of a block's shared memory, which code for 9.0 counts as declared
SWIZZLE = 1024  # bytes: a pattern of TMA's and wgmma's swizzle repeats after so many

failures = []


def expect(condition, message):
    if not condition:
        failures.append(message)


def find_cuobjdump(nvcc):
    beside = os.path.join(os.path.dirname(os.path.realpath(nvcc)), "cuobjdump")
    for path in (os.environ.get("CUOBJDUMP"), beside, shutil.which("cuobjdump")):
        if path and os.access(path, os.X_OK):
            return path
    print(f"SKIPPED: no cuobjdump beside {nvcc}, on PATH or in CUOBJDUMP")
    sys.exit(77)


def output_of(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def ptx_kernels(text):
    """By name: the threads of a block at most, and whether it does nothing."""
    kernels = {}
    for name, head, body in re.findall(r"\.entry\s+(\w+)\((.*?)\n\{(.*?)\n\}", text, re.S):
        bound = re.search(r"\.maxntid\s+(\d+)", head)
        kernels[name] = (int(bound.group(1)) if bound else 1024, body.strip() == "ret;")
    return kernels


def machine_kernels(text):
    """By name: registers of a thread, and declared bytes of shared memory."""
    found = re.findall(r"Function (\w+):\s+REG:(\d+) .*?SHARED:(\d+)", text)
    return {name: (int(registers), int(shared)) for name, registers, shared in found}


def shared_sections(path):
    """Of a cubin, by kernel: size and alignment of the section before dynamic shared memory."""
    with open(path, "rb") as file:
        elf = file.read()
    # A 64-bit ELF header: where the table of sections is, its entries, and the section of names.
    table = struct.unpack_from("<Q", elf, 0x28)[0]
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * entry_size)
                for i in range(count)]
    names = sections[names_index][4]
    result = {}
    for section in sections:
        start = names + section[0]
        name = elf[start:elf.index(b"\0", start)].decode()
        if name.startswith(".nv.shared.") and ".reserved." not in name:
            result[name[len(".nv.shared."):]] = (section[5], section[8])
    return result


def check_ptx(text, kernels):
    for name, (_, empty) in kernels.items():
        if "EmptyKernel" in name:
            continue  # cub's, for asking about a device
        expect(empty == ("wgmma" in name), f"{name} in PTX is {'' if empty else 'not '}empty")
    for name in re.findall(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\]", text):
        source = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+)_cu_", name)
        source = source.group(1) if source else re.sub(r"^.*?(row_ring_places).*$", r"\1", name)
        expect(source in SIZES_SHARED_MEMORY,
               f"{source} sizes its shared memory: add it to cuda_limits_test.cpp and here")


def check_resources(architecture, kernels, ptx):
    system = SYSTEM_BYTES if int(re.sub(r"\D", "", architecture)) >= 90 else 0
    for name, (registers, shared) in kernels.items():
        threads = ptx[name][0] if name in ptx else 1024
        expect(registers * threads <= REGISTERS,
               f"{name} for {architecture}: {threads} threads of {registers} registers")
        expect(shared - system <= DECLARED_LIMIT,
               f"{name} for {architecture} declares {shared} bytes of shared memory")


def check_alignment(cuobjdump, library):
    """Swizzled tiles lie at the base of dynamic shared memory, whose offset the compiler rounds up to
    the alignment it is declared with, in sources with one such array; gemm_wgmma rounds it up."""
    aligned = 0
    with tempfile.TemporaryDirectory() as folder:
        output_of(cuobjdump, "-xelf", "all", os.path.abspath(library), cwd=folder)
        for cubin in os.listdir(folder):
            for name, (size, alignment) in shared_sections(os.path.join(folder, cubin)).items():
                swizzles = re.search(r"flash_mma_kernel|backward_wgmma_kernel|"
                                     r"attention_backward_(keys|queries)_cu", name)
                if not swizzles or size == 0 and alignment <= 1 and ".sm_80." in cubin:
                    continue  # an empty kernel
                aligned += 1
                expect(alignment % SWIZZLE == 0 and size % SWIZZLE == 0,
                       f"{name} in {cubin}: dynamic shared memory after {size} bytes, aligned to "
                       f"{alignment}")
    expect(aligned > 0, "no kernel with swizzled tiles was found")


def main():
    library, nvcc, architectures = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
    cuobjdump = find_cuobjdump(nvcc)
    text = output_of(cuobjdump, "-ptx", library)
    ptx = ptx_kernels(text)
    machine = {}
    for architecture in architectures:
        if not architecture.endswith("-virtual"):
            number = "sm_" + architecture.removesuffix("-real")
            machine[number] = machine_kernels(
                output_of(cuobjdump, "-res-usage", "-arch", number, library))
            check_resources(number, machine[number], ptx)
            print(f"{number}: {len(machine[number])} kernels")
    if "80" in architectures or "80-virtual" in architectures:
        expect(set(re.findall(r"\.target (\w+)", text)) >= {"sm_80"}, "there is no PTX of 8.0")
        check_ptx(text, ptx)
        for number, kernels in machine.items():
            expect(kernels, f"there is no code for {number}")
            for name in kernels.keys() - ptx.keys():
                expect(False, f"{name} has code for {number}, but no PTX for later GPUs")
        print(f"PTX of 8.0: {len(ptx)} kernels")
    else:
        print("built for the GPUs of this machine alone: no PTX for others")
    check_alignment(cuobjdump, library)
    for failure in failures:
        print("FAILED:", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
