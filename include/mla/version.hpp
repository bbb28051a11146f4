#ifndef MLA_VERSION_HPP_
#define MLA_VERSION_HPP_

#include "mla/core/compiler.hpp"

/// The version of the library. CMakeLists.txt reads it from here, and the CMake package and the
/// pkg-config files state the same. Until 1.0 a new minor version may change the interface.
#define MLA_VERSION_MAJOR 0
#define MLA_VERSION_MINOR 1
#define MLA_VERSION_PATCH 0

#define MLA_DETAIL_VERSION_TEXT(major, minor, patch) #major "." #minor "." #patch
#define MLA_DETAIL_VERSION_OF(major, minor, patch) MLA_DETAIL_VERSION_TEXT(major, minor, patch)

/// "major.minor.patch"
#define MLA_VERSION MLA_DETAIL_VERSION_OF(MLA_VERSION_MAJOR, MLA_VERSION_MINOR, MLA_VERSION_PATCH)

#endif  // MLA_VERSION_HPP_
