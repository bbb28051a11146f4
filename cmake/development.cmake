# Flags for work on the library itself. Included only when it is the top-level project, so they
# reach nobody else's build.

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# -O2 is what the library promises its speed for.
get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
if(NOT multi_config AND NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Type of build" FORCE)
endif()

set(MLA_SANITIZE "" CACHE STRING "Sanitizers to build with, for example address,undefined")
if(MLA_SANITIZE)
  add_compile_options(-fsanitize=${MLA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${MLA_SANITIZE})
  if(MLA_SANITIZE MATCHES "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # In the static runtime operator new cannot be replaced, which some tests do.
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-resource-dir OUTPUT_VARIABLE resources
                    OUTPUT_STRIP_TRAILING_WHITESPACE)
    add_link_options(-shared-libsan -Wl,-rpath,${resources}/lib/linux)
  endif()
endif()

# Errors by default with the compilers that the tests are run with. Not with others, whose new
# warnings should stop nobody, and not under sanitizers with g++, which they give false alarms.
set(tested_compiler OFF)
if((CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION MATCHES "^12\\." AND
    NOT MLA_SANITIZE) OR
   (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION MATCHES "^16\\."))
  set(tested_compiler ON)
endif()
option(MLA_WARNINGS_AS_ERRORS "Stop at compiler warnings" ${tested_compiler})

# -Wconversion includes -Wsign-conversion in clang but not in g++: ask the same of both.
add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
                    $<$<BOOL:${MLA_WARNINGS_AS_ERRORS}>:-Werror>)
# With -O3, g++ 12 sees overlapping copies in its own std::string: https://gcc.gnu.org/PR105651
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION MATCHES "^12\\.")
  add_compile_options(-Wno-restrict)
endif()
