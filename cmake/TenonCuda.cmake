# Looks for nvcc, chooses GPU architectures and enables the CUDA language.
# Sets TENON_HAS_CUDA; nvcc's flags are in the target tenon_cuda_flags.

set(TENON_HAS_CUDA OFF)
if(NOT TENON_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "TENON_CUDA is '${TENON_CUDA}'; needed AUTO, ON or OFF")
endif()
if(TENON_CUDA STREQUAL "OFF")
  message(STATUS "Tenon: CPU only (TENON_CUDA=OFF)")
  return()
endif()

# check_language(CUDA) looks on PATH only, and nvcc is often not there.
set(nvcc "${CMAKE_CUDA_COMPILER}")
if(NOT nvcc)
  set(nvcc "$ENV{CUDACXX}")
endif()
if(NOT nvcc)
  find_program(TENON_NVCC nvcc
               HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin)
  mark_as_advanced(TENON_NVCC)
  if(TENON_NVCC)
    set(nvcc "${TENON_NVCC}")
    set(ENV{CUDACXX} "${TENON_NVCC}")
  endif()
endif()

# The architectures must be set before the language is enabled: CMake's own default is too old.
# (The variable's prefix matters: CMake's compiler check appends to a plain `architectures`.)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  # Machine code for 8.x and 9.0; later GPUs translate the intermediate code of 8.0 at first use.
  set(tenon_architectures "80;90a-real")
  get_filename_component(nvcc_folder "${nvcc}" DIRECTORY)
  find_program(TENON_NVCC_DEVICE_QUERY __nvcc_device_query HINTS "${nvcc_folder}")
  mark_as_advanced(TENON_NVCC_DEVICE_QUERY)
  if(TENON_NVCC_DEVICE_QUERY)
    execute_process(COMMAND "${TENON_NVCC_DEVICE_QUERY}" RESULT_VARIABLE failed
                    OUTPUT_VARIABLE found ERROR_QUIET)
    string(REGEX MATCHALL "[0-9]+" found "${found}")
    if(failed STREQUAL "0" AND found)
      list(REMOVE_DUPLICATES found)
      set(tenon_architectures "")
      foreach(capability IN LISTS found)
        if(capability GREATER_EQUAL 90)
          string(APPEND capability "a")
        endif()
        list(APPEND tenon_architectures "${capability}-real")
      endforeach()
    endif()
  endif()
  set(CMAKE_CUDA_ARCHITECTURES "${tenon_architectures}" CACHE STRING "GPU architectures")
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  set(reason "nvcc was not found")
  if(nvcc)
    set(reason "${nvcc} does not work, see CMakeFiles/CMakeError.log in the build folder")
  endif()
  if(TENON_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TENON_CUDA=ON, but ${reason}; set CUDA_HOME or CMAKE_CUDA_COMPILER")
  endif()
  message(NOTICE "== Tenon: building WITHOUT CUDA: ${reason} (CUDA_HOME says where it is)")
  unset(CMAKE_CUDA_COMPILER CACHE)  # so that the next configuration looks again
  return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(TENON_HAS_CUDA ON)
message(STATUS "Tenon: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

# cuDNN is optional: without it conv2d and attention have Tenon's own kernels only.
find_path(TENON_CUDNN_INCLUDE cudnn.h
          HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDNN_PATH PATH_SUFFIXES include)
find_library(TENON_CUDNN_LIBRARY cudnn
             HINTS "${CUDAToolkit_LIBRARY_DIR}" "${CUDAToolkit_LIBRARY_ROOT}" ENV CUDNN_PATH
             PATH_SUFFIXES lib64 lib)
mark_as_advanced(TENON_CUDNN_INCLUDE TENON_CUDNN_LIBRARY)
set(TENON_HAS_CUDNN OFF)
if(TENON_CUDNN_INCLUDE AND TENON_CUDNN_LIBRARY)
  set(TENON_HAS_CUDNN ON)
  message(STATUS "Tenon: cuDNN ${TENON_CUDNN_LIBRARY}")
else()
  message(STATUS "Tenon: no cuDNN (CUDNN_PATH says where it is)")
endif()

add_library(tenon_cuda_flags INTERFACE)
# -std is given by hand: CMake 3.25 does not know that nvcc takes C++20.
target_compile_options(tenon_cuda_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;--extended-lambda;--threads=2>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>")
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  target_compile_options(tenon_cuda_flags INTERFACE
                         "$<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>")
endif()
