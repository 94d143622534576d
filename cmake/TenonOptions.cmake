# Options, output folders, and the flags shared by everything Tenon compiles (target tenon_flags).

set(TENON_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (when nvcc is found), ON or OFF")
set_property(CACHE TENON_CUDA PROPERTY STRINGS AUTO ON OFF)
option(TENON_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(TENON_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
set(TENON_SANITIZE "" CACHE STRING "Sanitizers, for example address;undefined")
option(TENON_WERROR "Treat warnings as errors" OFF)
set(default_arch "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(default_arch x86-64-v3)
endif()
set(TENON_CPU_ARCH "${default_arch}" CACHE STRING "-march for host code; empty: the compiler's default")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# A build folder, and an installation, can be moved: programs look for the library beside them, and
# nothing is patched at installation.
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib" "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
list(REMOVE_DUPLICATES CMAKE_INSTALL_RPATH)

find_program(TENON_CCACHE ccache)
mark_as_advanced(TENON_CCACHE)
if(TENON_CCACHE)
  foreach(language IN ITEMS CXX CUDA)
    if(NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER "${TENON_CCACHE}")
    endif()
  endforeach()
endif()

# A compiler cache makes repeated builds cheap, precompiled headers the first one; they do not mix.
set(precompile ON)
if(TENON_CCACHE)
  set(precompile OFF)
endif()
option(TENON_PRECOMPILE_HEADERS "Precompile the headers that most sources include" ${precompile})

option(TENON_COMPILE_TOGETHER "Compile small sources in groups (tenon_compile_together)" ON)

add_library(tenon_flags INTERFACE)
# Not CMAKE_CXX_STANDARD: CUDA would inherit it, and CMake 3.25 does not know that nvcc takes C++20.
target_compile_features(tenon_flags INTERFACE cxx_std_20)
target_compile_options(tenon_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow>"
  # sqrt and friends as instructions: nobody reads errno.
  "$<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno>"
  # Error messages name sources relative to the checkout.
  "$<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=>")
if(TENON_CPU_ARCH)
  target_compile_options(tenon_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-march=${TENON_CPU_ARCH}>")
endif()
if(TENON_WERROR)
  target_compile_options(tenon_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Werror>"
                                               "$<$<COMPILE_LANGUAGE:CUDA>:--Werror=all-warnings>")
endif()
if(TENON_SANITIZE)
  list(JOIN TENON_SANITIZE "," names)
  target_compile_options(tenon_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${names};-fno-sanitize-recover=all;-fno-omit-frame-pointer>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fsanitize=${names}>")
  target_link_options(tenon_flags INTERFACE "-fsanitize=${names}")
endif()

# For programs and tests, which are compiled more often than they run long: their time is in the
# library.
add_library(tenon_program_flags INTERFACE)
target_link_libraries(tenon_program_flags INTERFACE tenon_flags)
target_compile_options(tenon_program_flags INTERFACE "$<$<CONFIG:Release>:-O1>")
