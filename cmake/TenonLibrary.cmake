# Finishes the library target `tenon`: its interface, its run-time search path, and its CMake package.
include(CMakePackageConfigHelpers)

add_library(tenon::tenon ALIAS tenon)
# An empty source lets the library link while every folder's list is still empty. CONFIGURE leaves a
# file that is right as old as it is: else every configuration would link everything again.
file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/generated/empty.cpp" CONTENT "")
target_sources(tenon PRIVATE "${PROJECT_BINARY_DIR}/generated/empty.cpp")
configure_file("${PROJECT_SOURCE_DIR}/cmake/version.h.in"
               "${PROJECT_BINARY_DIR}/generated/tensor/version.h" @ONLY)

target_compile_features(tenon INTERFACE cxx_std_20)
target_include_directories(tenon INTERFACE
  "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>"
  "$<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/generated>"
  "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/tenon>")
target_link_libraries(tenon PRIVATE tenon_flags Threads::Threads)
if(NOT TENON_SANITIZE)
  target_link_options(tenon PRIVATE LINKER:--no-undefined)
endif()
# Without a VERSION the library is one real file, libtenon.so.<major>.<minor>, and carries well.
set(rpath "$ORIGIN")
if(TENON_HAS_CUDA)
  list(APPEND rpath /usr/local/cuda/lib64)  # the usual place, where a carried build looks too
endif()
set_target_properties(tenon PROPERTIES
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  LINKER_LANGUAGE CXX
  INSTALL_RPATH "${rpath}"
  INSTALL_RPATH_USE_LINK_PATH ON)

# A build folder that is carried to another machine must bring the two libraries that are not
# everywhere; installed trees use the system's.
file(REAL_PATH "${OPENSSL_CRYPTO_LIBRARY}" crypto_file)
add_custom_command(TARGET tenon POST_BUILD VERBATIM
  COMMAND "${CMAKE_COMMAND}" -E copy_if_different
          "$<TARGET_SONAME_FILE:fmt::fmt>" "${crypto_file}" "$<TARGET_FILE_DIR:tenon>")

set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/tenon")
install(TARGETS tenon EXPORT tenon LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${PROJECT_BINARY_DIR}/generated/tensor/version.h"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/tenon/tensor")
install(EXPORT tenon NAMESPACE tenon:: FILE tenon-targets.cmake DESTINATION "${package_folder}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/tenon-config.cmake.in"
  "${PROJECT_BINARY_DIR}/package/tenon-config.cmake" INSTALL_DESTINATION "${package_folder}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/package/tenon-config-version.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/package/tenon-config.cmake"
              "${PROJECT_BINARY_DIR}/package/tenon-config-version.cmake"
        DESTINATION "${package_folder}")
