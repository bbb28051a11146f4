#ifndef MLA_CORE_BODIES_HPP_
#define MLA_CORE_BODIES_HPP_

#include "mla/core/compiler.hpp"

// Where the bodies of large functions that are no templates are compiled: in each file that calls
// them, as inline functions (the default), or with MLA_COMPILED in the one translation unit that
// defines MLA_SOURCE (CMake target mla::compiled). MLA_BODY stands before such a body;
// MLA_HAS_BODIES is defined where bodies are to be included.

#if defined(MLA_COMPILED)
#define MLA_BODY
#else
#define MLA_BODY inline
#endif

#if !defined(MLA_COMPILED) || defined(MLA_SOURCE)
#define MLA_HAS_BODIES
#endif

#endif  // MLA_CORE_BODIES_HPP_
