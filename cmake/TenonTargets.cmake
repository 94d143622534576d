# The functions by which folders declare what they hold: tenon_folder, tenon_program.

# tenon_precompile(<target> [<header>...]): the headers that nearly every source includes, and the given
# ones, of the project or in angle brackets, are parsed once for the target.
function(tenon_precompile target)
  if(NOT TENON_PRECOMPILE_HEADERS)
    return()
  endif()
  set(headers <algorithm> <cmath> <functional> <map> <memory> <optional> <set> <span> <string>
              <unordered_map> <unordered_set> <vector> <fmt/format.h> <fmt/ranges.h>)
  foreach(header IN ITEMS tensor/interpreter.h tensor/tensor.h LISTS ARGN)
    if(NOT header MATCHES "^<")
      set(header "${PROJECT_SOURCE_DIR}/${header}")
    endif()
    list(APPEND headers "${header}")
  endforeach()
  list(TRANSFORM headers REPLACE "(.+)" "$<$<COMPILE_LANGUAGE:CXX>:\\1>")
  target_precompile_headers(${target} PRIVATE ${headers})
endfunction()

# tenon_folder(<name> [HEADERS <public header>...] [SOURCES <file>...] [LIBRARIES <target>...]
#              [PRECOMPILE <header>...] [NO_INNER_LOOPS])
# Declares the calling folder's object library tenon_<name>, puts it into libtenon, and installs its
# public headers. Internal headers are not listed. PRECOMPILE names what most of its sources include.
# With NO_INNER_LOOPS the compiler takes a quarter less time for code that is a few percent slower.
function(tenon_folder name)
  cmake_parse_arguments(PARSE_ARGV 1 arg NO_INNER_LOOPS "" "HEADERS;SOURCES;LIBRARIES;PRECOMPILE")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "tenon_folder(${name}): unexpected ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(arg_SOURCES)
    add_library(tenon_${name} OBJECT ${arg_SOURCES})
    target_include_directories(tenon_${name} PRIVATE "${PROJECT_SOURCE_DIR}"
                                                     "${PROJECT_BINARY_DIR}/generated")
    target_link_libraries(tenon_${name} PRIVATE tenon_flags ${arg_LIBRARIES})
    list(LENGTH arg_SOURCES count)
    if(count GREATER 8)  # fewer do not make up for the precompilation
      tenon_precompile(tenon_${name} ${arg_PRECOMPILE})
    endif()
    if(arg_NO_INNER_LOOPS)
      target_compile_options(tenon_${name} PRIVATE "$<$<CONFIG:Release>:-O1>")
    endif()
    target_link_libraries(tenon PRIVATE tenon_${name})
    set_target_properties(tenon_${name} PROPERTIES UNITY_BUILD_MODE GROUP
                          UNITY_BUILD ${TENON_COMPILE_TOGETHER})
  endif()
  foreach(header IN LISTS arg_HEADERS)
    get_filename_component(folder "${name}/${header}" DIRECTORY)
    install(FILES "${header}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/tenon/${folder}")
  endforeach()
  # In the tree as in the package, a folder's name stands for the one library that holds it.
  add_library(tenon::${name} ALIAS tenon)
endfunction()

# tenon_compile_together(<file>...): small sources of the calling folder that the compiler reads as one, so
# that the headers, and what follows from them, are compiled once for all. Names in their unnamed
# namespaces must differ. Editing one compiles them all: keep a group below a second or two.
function(tenon_compile_together)
  list(GET ARGN 0 first)
  string(MAKE_C_IDENTIFIER "${first}" group)
  set_source_files_properties(${ARGN} PROPERTIES UNITY_GROUP "${group}")
endfunction()

# tenon_program(<name> <source>... [LIBRARIES <target>...])
# Builds and installs bin/<name>, linked to tenon, examples/command_line.h and nlohmann_json.
function(tenon_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBRARIES")
  add_executable(${name} ${arg_SOURCES} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE tenon::tenon tenon_program_flags tenon_command_line
                        nlohmann_json::nlohmann_json ${arg_LIBRARIES})
  install(TARGETS ${name} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endfunction()
