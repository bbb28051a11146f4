# Included by presets that build the tests for another processor (CMAKE_PROJECT_mla_INCLUDE):
# takes what the tests need from this machine's sources and headers, of which only those that hold
# for every processor may be found.

# GoogleTest from its sources (package googletest).
include(FetchContent)
set(INSTALL_GTEST OFF)
set(BUILD_GMOCK OFF)
FetchContent_Declare(GTest SOURCE_DIR /usr/src/googletest OVERRIDE_FIND_PACKAGE)

# nlohmann/json by a link: its own target would put all of /usr/include before the compiler's.
find_path(MLA_JSON_INCLUDE nlohmann/json.hpp REQUIRED)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/headers)
file(CREATE_LINK ${MLA_JSON_INCLUDE}/nlohmann ${CMAKE_BINARY_DIR}/headers/nlohmann SYMBOLIC)
add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
target_include_directories(nlohmann_json::nlohmann_json INTERFACE ${CMAKE_BINARY_DIR}/headers)
