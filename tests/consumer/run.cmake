# Installs a Tenon build to a temporary prefix, moves the prefix, then configures, builds and runs
# the project in CONSUMER against it. Fails with the first step that fails.
set(work "${TENON_BUILD}/consumer")
file(REMOVE_RECURSE "${work}")

function(step)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed (${status}): ${command}")
  endif()
endfunction()

step("${CMAKE_COMMAND}" --install "${TENON_BUILD}" --prefix "${work}/first")
file(RENAME "${work}/first" "${work}/prefix")

set(flags "")
if(SANITIZE)
  list(JOIN SANITIZE "," names)
  set(flags "-fsanitize=${names}")
endif()
step("${CMAKE_COMMAND}" -S "${CONSUMER}" -B "${work}/build" -G "${GENERATOR}"
     "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${flags}"
     "-DCMAKE_PREFIX_PATH=${work}/prefix")
step("${CMAKE_COMMAND}" --build "${work}/build")
step("${CMAKE_COMMAND}" -E chdir "${work}/build" "${CTEST}" --output-on-failure
     --no-tests=error)
